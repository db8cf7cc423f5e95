#!/bin/sh
# Prints the newest supported Python of this machine, for `make`; says on stderr which, and why.
#
#   scripts/interpreter.sh            looks on the PATH, among pyenv's, uv's and conda's, and in
#                                     /usr/bin, /usr/local/bin and /opt
#   scripts/interpreter.sh PYTHON     takes PYTHON, and ends with status 1 if it cannot be used
#
# Each candidate is run: a shim that leads nowhere, a free-threaded or 32-bit build (there are no
# wheels), one that cannot make environments, all are passed over.
set -u

SUPPORTED="3.13 3.12 3.11"
PROBE='
import struct, sys, sysconfig
version = sys.version_info
name = "%d.%d" % version[:2]
def refuse(why):
    print("- %s %s" % (sys.version.split()[0], why))
    sys.exit(0)
if name not in sys.argv[1].split():
    refuse("is not one of " + sys.argv[1].replace(" ", ", "))
if version.releaselevel != "final":
    refuse("is no release")
if sys.implementation.name != "cpython":
    refuse("is " + sys.implementation.name + ", not CPython")
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    refuse("is a free-threaded build")
if struct.calcsize("P") < 8:
    refuse("is a 32-bit build")
try:
    import bz2, ctypes, ensurepip, lzma, sqlite3, ssl, venv, zlib
except ImportError as e:
    refuse("lacks " + str(e.name) + " (Debian: apt install python3-venv)")
# Of an environment the interpreter that it was made of.
base = getattr(sys, "_base_executable", None) or sys.executable
print("+ %02d%02d%03d %s" % (version[0], version[1], version[2], base))
'

probe() {
  "$1" -I -c "$PROBE" "$SUPPORTED" 2>/dev/null </dev/null
}

if [ $# -gt 0 ] && [ -n "$1" ]; then
  found=$(probe "$1")
  case $found in
    +*) echo "${found#+ * }"; exit 0 ;;
    -*) echo "PYTHON=$1: ${found#- }. Supported: $SUPPORTED." >&2; exit 1 ;;
    *) echo "PYTHON=$1 does not run here. Supported: Python $SUPPORTED." >&2; exit 1 ;;
  esac
fi

candidates() {
  for version in $SUPPORTED; do
    IFS=:
    for folder in $PATH /usr/local/bin /usr/bin; do
      [ -x "$folder/python$version" ] && echo "$folder/python$version"
    done
    unset IFS
    for folder in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".* \
      "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}/cpython-$version".* \
      "${CONDA_PREFIX:-/nonexistent}" "$HOME/miniconda3" "$HOME/miniforge3" /opt/conda \
      "/opt/python/$version" "/opt/python$version" \
      "/Library/Frameworks/Python.framework/Versions/$version"; do
      [ -x "$folder/bin/python$version" ] && echo "$folder/bin/python$version"
    done
  done
  command -v python3
  command -v python
}

best=
refused=
tried=" "
while IFS= read -r candidate; do
  case $tried in *" $candidate "*) continue ;; esac
  # They come newest first: behind the newest minor version that works only its patches count.
  case ${best:+$candidate} in *"python${minor-}" | "") ;; *) break ;; esac
  tried="$tried$candidate "
  found=$(probe "$candidate")
  case $found in
    +*)
      minor=${candidate##*python}
      best=$(printf '%s\n%s\n' "$best" "$found" | sort -s -r -k2,2 | head -n 1)
      ;;
    -*) refused="$refused  $candidate: ${found#- }
" ;;
    *) refused="$refused  $candidate does not run
" ;;
  esac
done <<EOF
$(candidates)
EOF

if [ -z "$best" ]; then
  printf 'No supported Python was found, one of %s is needed.\n%s' "$SUPPORTED" "$refused" >&2
  echo "Install one (apt install python3-venv, uv python install 3.13), or name it: PYTHON=..." >&2
  exit 1
fi
echo "${best#+ * }"
