"""Complete text-to-image trainers that use the drop-in loss, one package per family.

An installation has them in this folder. In a checkout they lie in the repository's `baselines/`, which this package
then looks into: so they have one name, `vlm_plugin.baselines.dfgan`, wherever they are.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2] / "baselines"
if not (Path(__file__).parent / "dfgan").is_dir() and (_CHECKOUT / "dfgan").is_dir():
    __path__ = [str(_CHECKOUT)]
