"""Configuration: easydict files and `key=value` arguments for people, one checked and frozen dataclass for the code.

configs/base.py holds each key's default and explanation; `Config` holds its type and its range.

`load("configs/vgg2_r34_qg", ["lr=0.1"])` starts from configs/base.py, applies the file (Python, with an easydict `config`), then
the `key=value` arguments, and checks the result. It reports all problems together, in one `UserError` with one line per
problem. Each line names the file or argument; for an unknown key it suggests the nearest known one. A configuration file of
arcface_torch, unchanged, is translated first (utils/dialect.py).
"""

from utils.config.loading import from_base, load, load_json
from utils.config.rules import learned_views
from utils.config.schema import Config

__all__ = ["Config", "from_base", "learned_views", "load", "load_json"]
