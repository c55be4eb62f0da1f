#!/usr/bin/env bash
# Makes .venv from the pinned constraints. Usage: scripts/setup_env.sh EXTRAS   (such as "gguf" or "dev,gguf")
#
#   PYTHON=python3.12     the interpreter to build on (≥ 3.11)
#   TORCH=cpu|pypi|URL    which torch: cpu = the CPU build (default where no NVIDIA GPU is seen on Linux),
#                         pypi = the registry's own build (default elsewhere), or an index of your choice
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-gguf}
stamp=.venv/.installed-$(echo "$extras" | tr ',' '-')
if [ -f "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt constraints.txt ]; then exit 0; fi

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Chatwright needs Python 3.11 or newer; $python is $("$python" -V). Set PYTHON=/path/to/python3.11" >&2; exit 1; }
[ -d .venv ] || "$python" -m venv .venv
pip=".venv/bin/python -m pip --disable-pip-version-check"

torch=${TORCH:-}
if [ -z "$torch" ]; then
  torch=pypi
  if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then torch=cpu; fi
fi
index=()
case "$torch" in
  pypi) echo "Installing torch from the registry (CPU+CUDA build: about 3 GB on Linux). TORCH=cpu takes the small one." ;;
  cpu)  echo "No NVIDIA GPU seen: installing the CPU build of torch (about 190 MB). TORCH=pypi takes the CUDA build."
        # An index that can't be reached would only slow pip down; a local wheel or mirror may serve it too.
        if .venv/bin/python - <<'PY'
import sys, urllib.request
try:
    urllib.request.urlopen("https://download.pytorch.org/whl/cpu/", timeout=8)
except OSError:
    sys.exit(1)
PY
        then index=(--extra-index-url https://download.pytorch.org/whl/cpu); fi ;;
  *)    index=(--extra-index-url "$torch") ;;
esac
$pip install -q -c constraints.txt "${index[@]}" torch==2.13.0 2> >(grep -v "is ignored: it is neither" >&2)
echo "Installing the other packages (about 150 MB, pinned in constraints.txt) …"
$pip install -q -c constraints.txt -e ".[$extras]" 2> >(grep -v "is ignored: it is neither" >&2)
touch "$stamp"
