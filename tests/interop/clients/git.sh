#!/usr/bin/env bash
# Git's smart protocol: clones, small and large pushes, with a length and chunked, and fetches.
source "${0%/*}/transcript.sh"
url=$1
export GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1 GIT_PROGRESS_DELAY=1000
export GIT_AUTHOR_DATE=2026-01-01T00:00:00Z GIT_COMMITTER_DATE=2026-01-01T00:00:00Z
git config --global user.name app
git config --global user.email app@localhost
git config --global init.defaultBranch main
git config --global advice.detachedHead false
git config --global gc.auto 0
run git clone "$url" work
cd work
commits() { git add -A && git commit -qm "$1"; }
cp ../files/small.txt .
run commits "small"
run git push -u origin main
cp -r ../files .
run commits "files"
run git push
head -c 30000 /dev/zero | tr '\0' a >compressible
run commits "chunked"
run git -c http.postBuffer=65536 push
# Many commits and tags: a client that has them names them in requests, which are then compressed.
for number in $(seq 300); do
    printf 'commit refs/heads/main\nmark :%d\n' "$number"
    printf 'committer app <app@localhost> 1767225600 +0000\ndata <<END\ncommit %d\nEND\n' "$number"
    ((number > 1)) || printf 'from refs/heads/main^0\n'
    printf 'reset refs/tags/tag-%d\nfrom :%d\n' "$number" "$number"
done | git fast-import --quiet
run git push --tags
run git push
run git checkout -q -b branch HEAD~100
cat ../files/large.bin ../files/medium.bin >large.bin
run commits "a branch"
run git -c http.postBuffer=65536 push origin branch
run git push --force origin HEAD~1:main
run git push origin :branch tag-1:refs/heads/from-tag
cd ..
for version in 0 1 2; do
    run git -c "protocol.version=$version" ls-remote "$url"
    run git -c "protocol.version=$version" clone -q "$url" "clone-$version"
    run git -C "clone-$version" fsck --full --strict
done
run git clone -q --depth 1 --branch main "$url" shallow
run git -C shallow fetch -q --unshallow
run git -C shallow log --oneline
run git -C work commit -q --allow-empty -m "not at the server"
run git -C clone-2 fetch --tags "$url"
run git clone "$url-missing"
find . -name .git -type d -prune -exec rm -rf {} +
