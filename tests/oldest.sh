#!/usr/bin/env bash
# Passes the suite on the oldest Python and torch that setup.py admits, in a virtual environment of its own.
# usage: [PYTHON=path/to/python3.10] tests/oldest.sh [pytest options]
#   PYTHON  a Python 3.10: the environment is made from it; one that has the oldest torch already is used as it is
#   VENV    where the environment lies (default: .venv-oldest in the repository); kept for the next time
set -euo pipefail
cd "$(dirname "$0")/.."
TORCH=2.4.0 TORCHVISION=0.19.0 PILLOW=10.1.0
python=${PYTHON:-$(command -v python3.10 || true)}
is() { "$1" -c "import sys; sys.exit(sys.version_info[:2] != (3, 10))" 2>/dev/null; }
has() { "$1" -c "import sys, torch; sys.exit(torch.__version__.split('+')[0] != '$TORCH')" 2>/dev/null; }
if [ -z "$python" ] || ! is "$python"; then
  echo "oldest: expected Python 3.10, got ${python:-none}: install one, or name it (PYTHON=path/to/python3.10)" >&2
  exit 2
fi
if ! has "$python"; then
  venv=${VENV:-.venv-oldest}
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  python=$venv/bin/python
  if ! has "$python"; then
    "$python" -m pip install -q "torch==$TORCH" "torchvision==$TORCHVISION" "pillow==$PILLOW" -e ".[dev]"
  fi
fi
"$python" -c "import sys, torch, torchvision, PIL, numpy; print('Python', sys.version.split()[0], 'torch', \
torch.__version__, 'torchvision', torchvision.__version__, 'Pillow', PIL.__version__, 'numpy', numpy.__version__)"
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m pytest "$@"
