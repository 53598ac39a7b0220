#!/bin/sh
# pip with what a build has been given: versions, wheels, options. install.sh install|wheel ...
set -eu
command=$1
shift
exec pip "$command" --no-cache-dir --constraint /install/constraints.txt --find-links /install/wheels $(cat /install/options) "$@"
