"""Classes that moved: configs that name them as they were called keep working."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from specbench.decoding.autoregressive import Autoregressive
from specbench.records.certificates import Certificate, read_certificate
from specbench.records.moved import MOVED, translate_targets
from specbench.records.run_directory import RunDirectory
from specbench.setup.instantiate import check_node, instantiate, locate_class

OLD = "methods.autoregressive.Autoregressive"


@pytest.mark.parametrize("old", MOVED)
def test_every_moved_class_is_found_under_its_old_name(old: str) -> None:
    assert locate_class({"_target_": old}) is locate_class({"_target_": MOVED[old]})


def test_a_yaml_with_an_old_name_is_checked_and_built() -> None:
    check_node({"_target_": OLD}, "method.mine", Autoregressive)
    assert isinstance(instantiate({"_target_": OLD}, Autoregressive, "method.autoregressive"), Autoregressive)


def test_names_are_translated_wherever_they_are_nested() -> None:
    nested = {"method": {"sps": {"_target_": "methods.sps.SpeculativeSampling", "parts": [{"_target_": OLD}], "path": OLD}}}
    translated = translate_targets(nested)
    assert translated["method"]["sps"]["parts"] == [{"_target_": MOVED[OLD]}]
    assert translated["method"]["sps"]["path"] == OLD, "only what is called _target_ names a class"


def test_a_stored_run_and_a_stored_certificate_say_todays_names(tmp_path: Path) -> None:
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 96}
    config = {"method": {"autoregressive": {"_target_": OLD}}, "sampling": sampling, "target": {"name": "mini", "shape": None}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert RunDirectory(tmp_path).read_config()["method"]["autoregressive"]["_target_"] == MOVED[OLD]
    stored = Certificate({}, config, 0.01, {"greedy": 0.1, "sampled": 0.1}, {"texts": 0, "differing": 0}, [], []).write(tmp_path)
    assert read_certificate(stored).config == translate_targets(config)
