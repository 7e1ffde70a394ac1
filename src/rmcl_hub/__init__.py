"""Robust multimodal contrastive learning for vision-and-language models.

Importing this package makes Transformers' Auto classes know `rmcl_vilt`.
"""

import sys
from importlib.metadata import version
from pathlib import Path

__version__ = version("rmcl-hub")

# The `rmcl-hub` command imports this package on its way to `rmcl_hub.cli`. There the seconds that torch takes
# are left to the subcommand that needs them, so that `rmcl-hub --help` answers at once.
if Path(sys.argv[0]).stem != "rmcl-hub":
    from rmcl_hub import modeling_rmcl  # noqa: F401
