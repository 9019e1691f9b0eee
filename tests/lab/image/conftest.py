"""Where these tests are: in the VM that has the image."""

from __future__ import annotations

from pathlib import Path

from tests.image import bundle
from tests.lab import places

# In another VM these tests are not skipped, they are not there.
has_image = (Path("/") / bundle.IN_LAYER).exists()
collect_ignore_glob = ["test_*.py"] if places.in_vm() and not has_image else []
