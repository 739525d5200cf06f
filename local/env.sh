# env.sh: sourced by every script. Afterwards $root is the project's folder, $PYTHON has what requirements.txt lists,
# and compute-wer and torchrun are on PATH.
#
# The environment is .venv in the project's folder, made on first use and brought up to date when requirements.txt
# changes. PYTHON=/path/python takes yours instead, as it is: nothing is installed there. A .venv that you made by
# hand is yours too (ours holds a file .lock).
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

# Whether the environment is ours to install into.
venv_is_ours() {
  [[ ${PYTHON:-$venv/bin/python} == "$venv/bin/python" ]] && [[ -e $venv/.lock || ! -e $venv/bin/python ]]
}

# The first Python on PATH that the pinned packages run on and that can make a virtual environment.
find_python() {
  local name
  for name in python3.11 python3 python3.12 python3.13; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo "error: no Python of version 3.11 or newer with the venv module is on PATH; install one (on Debian and" \
    "Ubuntu: apt install python3-venv), or name your own environment with PYTHON=/path/python" >&2
  return 1
}

# version_and_checksum FILE: what the stamp of a complete installation of FILE says.
version_and_checksum() {
  "$venv/bin/python" -V && cksum <"$1"
}

# venv_has NAME FILE: whether the last complete installation called NAME was of FILE as it stands.
venv_has() {
  [[ -e $venv/.$1.stamp && $(<"$venv/.$1.stamp") == "$(version_and_checksum "$2" 2>/dev/null)" ]]
}

# make_venv: an empty .venv, unless there is a complete one of the same Python version.
make_venv() {
  local version python
  version=$("$venv/bin/python" -V 2>/dev/null)
  [[ $version && $(head -n 1 "$venv/.requirements.stamp" 2>/dev/null) == "$version" ]] && return
  python=$(find_python) || return
  echo "making $venv with $python ($("$python" -V)); 2 GB, with CUDA 7 GB"
  find "$venv" -mindepth 1 ! -path "$venv/.lock" -delete && "$python" -m venv "$venv"
}

# install_into_venv NAME FILE: brings .venv to what FILE lists, one process at a time. The stamp is written last, so an
# interrupted installation is done again. In a subshell, so that the lock goes when it ends.
install_into_venv() (
  mkdir -p "$venv" && exec 9>"$venv/.lock" || return
  if command -v flock >/dev/null && ! flock -n 9; then # macOS has no flock
    echo "waiting for another process to finish $venv"
    flock 9
  fi
  venv_has "$1" "$2" && return
  make_venv || return
  echo "installing $(grep -c '==' "$2") packages ($1) into $venv"
  rm -f "$venv/.$1.stamp"
  if ! "$venv/bin/python" -m pip install --disable-pip-version-check -r "$2"; then
    echo "error: pip could not install $2 into $venv (its reason stands above); the same command tries again" >&2
    return 1
  fi
  version_and_checksum "$2" >"$venv/.$1.stamp"
)

# lacks FILE: says which packages of FILE $PYTHON lacks, which is not ours to change; status 0 if there is one.
lacks() {
  ! "$PYTHON" - "$1" <<'P'
import re
import sys
from importlib import metadata

lines = open(sys.argv[1], encoding="utf-8").read().split("\n")
missing = []
for name, pin in [pin.groups() for pin in map(re.compile(r"([\w.-]+)==(\S+)").match, lines) if pin]:
    try:
        found = metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        missing.append(f"{name}=={pin}")
        continue
    if found != pin:
        print(f"note: {name} {found} in your environment, tested with {pin}", file=sys.stderr)
if missing:
    sys.exit(
        f"error: {sys.executable} lacks {' '.join(missing)}. It is your environment, so nothing is installed there: "
        f"run `{sys.executable} -m pip install {' '.join(missing)}`, or leave PYTHON unset and let .venv be made"
    )
P
}

# need NAME FILE: $PYTHON has what FILE lists; installed if the environment is ours, looked for if it is yours.
need() {
  if venv_is_ours; then
    venv_has "$1" "$2" || install_into_venv "$1" "$2"
  else
    ! lacks "$2"
  fi
}

# need_extras NAME...: the same for the optional dependencies of that name in pyproject.toml.
need_extras() {
  local list status=0
  list=$(mktemp)
  "$PYTHON" - "$root/pyproject.toml" "$@" >"$list" <<'P' && need "extras-$(IFS=-; echo "$*")" "$list" || status=$?
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
print("\n".join(pin for name in sys.argv[2:] for pin in extras[name]))
P
  rm -f "$list"
  return "$status"
}

use_environment() {
  local path scripts
  PYTHON=${PYTHON:-$venv/bin/python}
  if ! venv_is_ours; then
    if ! path=$(command -v "$PYTHON"); then
      echo "error: PYTHON=$PYTHON is no program; name a Python, or leave PYTHON unset and let .venv be made" >&2
      return 1
    fi
    PYTHON=$(cd "$(dirname "$path")" && pwd)/${path##*/} # the recipes change folder
  fi
  need requirements "$root/requirements.txt" || return
  scripts=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))') || return
  [[ :$PATH == ":$scripts:"* ]] || PATH=$scripts:$PATH
  [[ :${PYTHONPATH:-}: == *":$root:"* ]] || PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
  export PATH PYTHON PYTHONPATH PYTHONUNBUFFERED=1 # unbuffered: through tee, lines keep their order
}

use_environment
