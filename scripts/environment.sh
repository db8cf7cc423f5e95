#!/bin/sh
# Makes an environment, or keeps the one that is there; says which Python it has, and why.
#
#   scripts/environment.sh same VENV PYTHON        prints "same" if VENV runs and is of that Python
#   scripts/environment.sh make UV VENV INTERPRETER CHOSEN
#
# CHOSEN is what the user named by PYTHON=; empty if INTERPRETER is the newest that was found. An
# environment of another Python is replaced when the user named one or when it runs no more, and
# kept otherwise: what is installed in it is the user's.
set -eu

version_of() {
  "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

case $1 in
  same)
    has=$(version_of "$2/bin/python")
    [ -n "$has" ] && { [ -z "$3" ] || [ "$has" = "$(version_of "$3")" ]; } && echo same
    exit 0
    ;;
esac
uv=$2 venv=$3 interpreter=$4 chosen=$5
has=$(version_of "$venv/bin/python") wanted=$(version_of "$interpreter")
reason="the newest supported Python of this machine; PYTHON= takes another"
[ -z "$chosen" ] || reason="as PYTHON=$chosen says"
if [ -z "$has" ] || { [ -n "$chosen" ] && [ "$has" != "$wanted" ]; }; then
  if [ -e "$venv/pyvenv.cfg" ]; then
    echo "$venv of Python ${has:-that is no more} is replaced."
  fi
  echo "$venv gets Python $wanted ($interpreter): $reason."
  exec "$uv" venv --quiet --clear --python "$interpreter" "$venv"
fi
if [ "$has" != "$wanted" ]; then
  echo "$venv is of Python $has and is kept; this machine has $wanted ($interpreter), with which"
  echo "training is faster: make setup PYTHON=$interpreter replaces it."
fi
