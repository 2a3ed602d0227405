"""`python -m ops.sandbox`: the sandbox alone, configured by `SANDBOX_*`."""

import os

from ops.sandbox.config import SandboxConfig
from ops.sandbox.server import run

run(SandboxConfig.from_env(os.environ))
