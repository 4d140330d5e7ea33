"""The worked pages, one per kind of method: their code decodes the target's own text, and what is trained learns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import yaml

from specbench import ROOT
from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.drafters.lesson import Lesson
from specbench.drafters.network import DraftNetwork, TargetShape
from tests.methods_under_test import target_of
from tests.tiny import prompts

PAGES = ["method_from_tokens", "method_reading_target", "method_trained"]


def read_page(page: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The names that the page's code defines, and the settings of its YAML."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (settings,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": page}
    exec(compile(code, page, "exec", dont_inherit=True), names)
    return names, yaml.safe_load(settings)


def build_method(page: str) -> Drafter:
    names, settings = read_page(page)
    arguments = {key: value for key, value in settings.items() if key != "_target_"}
    if "checkpoint" in arguments:
        arguments["checkpoint"] = "random"
    drafter: Drafter = names[settings["_target_"].rpartition(".")[2]](**arguments)
    return drafter


def decode(drafter: Drafter, sampling: Sampling) -> list[Generation]:
    drafter.bind(target_of("llama"))
    return [generate(target_of("llama"), drafter, [prompt], sampling)[0] for prompt in prompts(12)]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_pages_method_writes_the_targets_own_text(page: str, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, max_new_tokens=30, seed=5)
    outs = decode(build_method(page), sampling)
    assert [out.output_ids for out in outs] == [out.output_ids for out in decode(Autoregressive(), sampling)]
    assert sum(map(sum, (out.drafted for out in outs))) > 0, "it drafts"


def test_a_pages_network_learns() -> None:
    """From hidden states that give the token two places ahead away."""
    names, _ = read_page("method_trained")
    shape = TargetShape.of(target_of("llama").config)
    network: DraftNetwork = names["Head"](names["Head"].create_config(shape), shape)
    ids = torch.randint(0, 16, (4, 24), generator=torch.Generator().manual_seed(0))
    hidden = torch.nn.functional.one_hot(ids.roll(-2, dims=1), shape.hidden_size).float()
    lesson = Lesson(ids, torch.ones_like(ids, dtype=torch.bool), hidden, hidden, network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.5)
    losses = []
    for _ in range(40):
        loss = network.compute_loss(lesson).loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0], losses
