-- Every request is of the user "app": Subversion grants no lock without a user.
function set_user(r)
    r.user = "app"
    return apache2.DECLINED
end
