"""What stays beside a finished ablation when its run is killed."""

from squeeze10_quantizer import cli
from squeeze10_quantizer.cli import BAD_DATA, main
from squeeze10_quantizer.state_directory import StateDirectory

SMALL = ["--samples", "2", "--context", "16", "--device", "cpu"]


def test_a_state_left_beside_results_goes_with_the_same_command_only(tiny_model, tmp_path, monkeypatch, capsys):
    """A run killed between publishing and cleaning up; what is not its own is not removed."""
    out, state = tmp_path / "out", tmp_path / "out.partial"
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog. " * 4)
    measures = ["--text", str(text), "--text-context", "50"]
    arguments = ["ablate", str(tiny_model), "--out", str(out), "--table", "6", *measures, *SMALL]

    def stopping(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StateDirectory, "remove", stopping)
        assert main(arguments) == cli.STOPPED
    results = (out / "results.json").read_bytes()

    assert main([*arguments, "--seed", "1"]) == BAD_DATA
    assert "is the state of a run with another" in capsys.readouterr().err
    (out / "results.json").write_bytes(results[:-10])
    assert main(arguments) == BAD_DATA
    assert "is not the whole output of the run whose state is" in capsys.readouterr().err
    assert state.exists()

    (out / "results.json").write_bytes(results)
    assert main(arguments) == 0

    assert "was already finished" in capsys.readouterr().err
    assert not state.exists()
    assert (out / "results.json").read_bytes() == results
