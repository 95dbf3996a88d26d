"""What result files say about how they were made."""

import subprocess
import sys
from pathlib import Path


def test_a_module_s_command_can_be_typed_again(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    program = "from iformer.common.provenance import provenance; print(provenance(0)['command'])"
    (tmp_path / "report" / "__main__.py").write_text(program)
    command = [sys.executable, "-m", "report", "--rounds", "3 4"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "python -m report --rounds '3 4'"
