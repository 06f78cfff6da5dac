#!/usr/bin/env bash
# davfs2: a mounted WebDAV server. Files are uploaded before `umount` ends; the second mount has an
# empty cache, and reads everything back.
source "${0%/*}/transcript.sh"
url=$1
cache=$HOME/cache
mount=$HOME/mount
mkdir "$mount"
trap 'mountpoint -q "$mount" && umount "$mount"' EXIT
trap 'exit 1' TERM
mounts() {
    rm -rf "$cache"
    mkdir -m 775 "$cache"
    chgrp davfs2 "$cache"
    printf '%s\n' "ask_auth 0" "delay_upload 0" "cache_dir $cache" >"$HOME/davfs2.conf"
    mount.davfs -o "conf=$HOME/davfs2.conf" "$url" "$mount" </dev/null
}
unmounts() { umount "$mount" >/dev/null; }
appends() { printf 'one more line\n' >>"$1"; }
checksums() {
    cd "$mount"
    find . -type f -not -path './lost+found/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    cd - >/dev/null
}

run mounts
run cp files/small.txt "$mount/new.txt"
run cp files/large.bin "$mount/large.bin"
run cp -r files "$mount/copied"
run unmounts
run mounts
run checksums
run appends "$mount/new.txt"
run cp files/medium.bin "$mount/large.bin"
run mv "$mount/copied/medium.bin" "$mount/moved.bin"
run mv "$mount/copied/sub" "$mount/moved folder"
run rm "$mount/copied/small.txt"
run mkdir "$mount/made"
run rmdir "$mount/made"
run truncate -s 100 "$mount/copied/large.bin"
run unmounts
