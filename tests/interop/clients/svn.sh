#!/usr/bin/env bash
# Subversion: checkout, commit, locks, branches, merge, and operations on the repository's URL.
source "${0%/*}/transcript.sh"
svn() { command svn --non-interactive "$@"; }
# The order of files is random at the server.
sorted() { "$@" | LC_ALL=C sort; }
# Else each change of a working copy lasts until the next second.
export SVN_I_LOVE_CORRUPTED_WORKING_COPIES_SO_DISABLE_SLEEP_FOR_TIMESTAMPS=yes
url=$1
run svn mkdir -m "layout" "$url/trunk" "$url/branches"
run svn checkout "$url/trunk" trunk
cp -r files trunk/files
run svn add --quiet trunk/files
run svn propset svn:mime-type application/octet-stream trunk/files/medium.bin
run svn commit -m "files" trunk
run svn update --quiet trunk
run svn lock -m "mine" trunk/files/small.txt
echo "changed under a lock" >>trunk/files/small.txt
run svn commit -m "changed, and unlocked" trunk
run svn lock "$url/trunk/files/medium.bin"
run sorted svn status -u trunk
run svn unlock "$url/trunk/files/medium.bin"
run svn copy -m "branch" "$url/trunk" "$url/branches/one"
run svn checkout "$url/branches/one" one
cat files/medium.bin >>one/files/large.bin
run svn move one/files/sub one/files/moved
run svn commit -m "on the branch" one
run svn update --quiet trunk
run svn merge --quiet "$url/branches/one" trunk
run svn commit -m "merged" trunk
run svn move -m "moved at the server" "$url/trunk/files/small.txt" "$url/trunk/files/small 2.txt"
run svn delete -m "deleted at the server" "$url/trunk/files/empty"
run svn import --quiet -m "import" files "$url/branches/imported"
run svn update --quiet trunk
run svn log -v "$url"
run svn diff -r 2:HEAD "$url/trunk/files/small 2.txt@HEAD"
run sorted svn diff -r 2:3 "$url/trunk"
run svn blame "$url/trunk/files/small 2.txt"
run sorted svn list -R -v "$url"
run svn info --show-item revision "$url"
run sorted svn propget svn:mime-type -R "$url/trunk"
run svn export --quiet "$url/branches" exported
run svn cat "$url/missing"
rm -rf trunk/.svn one/.svn
