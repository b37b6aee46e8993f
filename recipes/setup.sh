# Sourced by the recipes: a virtual environment with zaya installed and first on the PATH.
# VENV says where (.venv), EXTRAS which extras ("[dev]"), TORCH_INDEX_URL where torch 2.13.0 comes from if it must be installed.
# A torch >= 2.13 that the environment, or the python3 it is made from, already has is never touched: a ROCm or CUDA build survives.
venv=${VENV:-.venv}
has_torch='import torch; assert tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 13)'
if [ ! -x "$venv/bin/python" ]; then
  if python3 -c "$has_torch" 2>/dev/null; then
    python3 -m venv "$venv"
    # A path file, not --system-site-packages: python3 may itself live in a virtual environment.
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    python3 -c 'import site, sysconfig; print("\n".join(dict.fromkeys([sysconfig.get_path("purelib"), *site.getsitepackages()])))' >"$site/outer.pth"
  else
    python3 -m venv "$venv"
  fi
fi
if ! "$venv/bin/python" -c "$has_torch" 2>/dev/null; then
  "$venv/bin/python" -m pip install --quiet torch==2.13.0 ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
fi
stamp="$venv/zaya-installed${EXTRAS:-}"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  "$venv/bin/python" -m pip install --quiet --editable ".${EXTRAS:-}"
  touch "$stamp"
fi
PATH="$(cd "$venv/bin" && pwd):$PATH"
export PATH
unset ZAYA_MODEL
