"""What an editor knows: a user's script has real types, and a wrong argument is seen before it runs."""

import json
import subprocess
import sys

import pytest

from tests.helpers.pages import ROOT

SCRIPT = """\
from transformers import PreTrainedModel

from nspec_hf import NeuronGate, NeuronMasks, record


def specialize(model: PreTrainedModel) -> None:
    stats = record(model, [], ["en-de"])
    masks = NeuronMasks.from_coverage(stats)
    gate = NeuronGate(model, masks)
    kept = masks["en-de"]["model.encoder.layers.0.fc1"]
    reveal_type((stats, masks, gate, kept, gate.masks))
    NeuronGate(model, 3)
"""


@pytest.mark.slow
def test_a_short_script_has_real_types_and_a_wrong_argument_is_an_error(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(file)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500).stdout
    messages = {
        each["message"].split("\n")[0]: each["severity"] for each in json.loads(said)["generalDiagnostics"]
    }
    assert messages == {
        'Type of "(stats, masks, gate, kept, gate.masks)" is '
        '"tuple[ActivationStats, NeuronMasks, NeuronGate, Tensor, NeuronMasks]"': "information",
        'Argument of type "Literal[3]" cannot be assigned to parameter "masks" of type "NeuronMasks" in '
        'function "__init__"': "error",
    }
