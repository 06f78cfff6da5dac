#!/usr/bin/env bash
# rclone: copies, compares, moves and deletes with several transfers at the same time.
source "${0%/*}/transcript.sh"
cloud=":webdav,url='$1':"
options=(--config "" --stats 0 --transfers 8 --checkers 8)
# Repetitions would hide what fails.
options+=(--retries 1 --low-level-retries 1)
rclone() { command rclone "${options[@]}" "$@"; }
run rclone mkdir "${cloud}made"
run rclone copy files "${cloud}made/files"
run rclone check --download files "${cloud}made/files"
run rclone sync files "${cloud}made/files"
run rclone copyto files/large.bin "${cloud}made/one.bin"
run rclone moveto "${cloud}made/one.bin" "${cloud}made/name with blanks.bin"
run rclone copy "${cloud}made/files" "${cloud}made/copied at the server"
run rclone move "${cloud}made/copied at the server" "${cloud}made/moved"
run rclone cat --offset 1000 --count 20 "${cloud}made/files/sub/deep.txt"
run rclone rcat "${cloud}made/streamed.bin" <files/medium.bin
run rclone deletefile "${cloud}made/files/medium.bin"
run rclone purge "${cloud}made/moved"
run rclone lsf -R "${cloud}made"
run rclone copy "${cloud}made" fetched
run rclone copy ":http,url='$1':made/files" fetched-over-http
run rclone cat "${cloud}missing"
