#!/usr/bin/env bash
# cadaver: files, collections, properties and locks of WebDAV.
cadaver "$1" <<'COMMANDS'
ls
mkcol made
cd made
lcd files
put large.bin
put medium.bin renamed.bin
put "name with blanks.txt"
ls
propset large.bin colour blue
propget large.bin colour
lock large.bin
discover large.bin
put medium.bin large.bin
unlock large.bin
copy renamed.bin copied.bin
move copied.bin "moved with blanks.bin"
set overwrite off
copy large.bin renamed.bin
mkcol nested
move renamed.bin nested/renamed.bin
lock nested
put small.txt nested/small.txt
move nested/small.txt nested/other.txt
unlock nested
cat nested/other.txt
lcd ..
get large.bin fetched.bin
get "moved with blanks.bin"
mget *.txt
copy nested nested-copy
ls nested-copy
delete "moved with blanks.bin"
rmcol nested
get missing.bin
lock missing-is-created.txt
unlock missing-is-created.txt
ls
quit
COMMANDS
