#!/usr/bin/env bash
# Git's dumb protocol: a repository that a WebDAV server stores as files.
source "${0%/*}/transcript.sh"
url=$1
export GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_DATE=2026-01-01T00:00:00Z GIT_COMMITTER_DATE=2026-01-01T00:00:00Z
git config --global user.name app
git config --global user.email app@localhost
git config --global init.defaultBranch main
git config --global gc.auto 0
git init -q --bare empty.git
git -C empty.git update-server-info
rm -rf empty.git/hooks
run rclone --config "" copy empty.git ":webdav:repository.git" --webdav-url "$url"
git init -q work
cp -r files work/files
git -C work add -A
git -C work commit -qm "files"
run git -C work push "$url/repository.git" main
git -C work commit -q --allow-empty -m "one more"
run git -C work push "$url/repository.git" main
run git clone -q "$url/repository.git" clone
run git -C clone log --oneline
rm -rf work empty.git clone/.git
