"""The certificate: sound where a method is, and every planted bug found."""

import json
import shutil
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.planted import PLANTS, AcceptsByP, Miniature, rule, shifted
from specbench.certify import enumeration, permutation
from specbench.certify.certificate import FILE, Certificate, Known, Verdict, known, most_wrong, read
from specbench.certify.certify import certify
from specbench.certify.following import Noise, Text, followed, logits_of, misfits, noise_of
from specbench.certify.miniature import drafter_of as settled
from specbench.certify.miniature import miniature
from specbench.certify.permutation import permutation_test
from specbench.certify.shown import markdown
from specbench.compose import composed
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling, probabilities
from specbench.errors import InputError
from tests.fake_run import CONFIG, PROVENANCE
from tests.methods_under_test import drafter_of
from tests.tiny import prompts, tiny_language_model, tiny_model

SMALL = Miniature(draws=512)
WARM = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=12, seed=3)


@torch.inference_mode()
def behind(target: LanguageModel, tokens: list[int]) -> torch.Tensor:
    """(V,) by our own engine."""
    return target.prefill(target.store(len(tokens)), [torch.tensor(tokens)])[0].logits[0]


def test_what_is_counted_out_is_the_targets_own_step_by_step() -> None:
    """Against a forward a prefix over our own store."""
    wanted = enumeration.exact(SMALL.target, WARM)
    assert wanted.shape == (8, 8, 8) and wanted.sum() == pytest.approx(1)
    slow = 0.0
    for first in range(8):
        written, likely = [first, 2, 5, 7], 1.0
        for at, token in enumerate(written):
            likely *= float(probabilities(behind(SMALL.target, [*enumeration.PROMPT, *written[:at]]), WARM)[token])
        slow += likely
    assert wanted[2, 5, 7] == pytest.approx(slow, rel=1e-4)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda one: f"{one.what}-{one.part}")
def test_a_planted_bug_is_found(plant) -> None:
    assert SMALL.found(plant, seed=0)


def test_g_tests_cry_wolf_as_often_as_they_say() -> None:
    """On draws from the very distribution that is tested against."""
    rng = np.random.default_rng(0)
    wanted = enumeration.exact(SMALL.target, WARM)
    cells = np.array(list(product(range(8), repeat=3)))
    p_values = [
        test.p_value
        for _ in range(200)
        for test in enumeration.g_tests(cells[rng.choice(512, 2000, p=wanted.ravel())], wanted, 0.01)
    ]
    assert stats.binomtest(sum(p < 0.05 for p in p_values), len(p_values), 0.05).pvalue > 1e-3
    assert sum(p < 0.05 / 5 for p in p_values) < 25


def test_what_is_said_to_be_found_is_found() -> None:
    """A distribution that far away, at that level, 99 times of a hundred or more."""
    rng = np.random.default_rng(1)
    wanted = np.full((8, 8, 8), 1 / 512)
    away = enumeration.finds(8, 4000, 0.01)
    shifted = np.full(8, 1 / 8) + away / 4 * np.repeat([1, -1], 4)
    tests = 0
    for _ in range(300):
        drawn = np.stack([rng.choice(8, 4000, p=shifted), rng.integers(8, size=4000), rng.integers(8, size=4000)], axis=1)
        tests += enumeration.g_tests(drawn, wanted, 0.01)[0].p_value < 0.01
    assert 0.5 * np.abs(shifted - 1 / 8).sum() == pytest.approx(away)
    assert tests >= 290


def test_an_impossible_token_is_found_at_once() -> None:
    wanted = np.zeros((8, 8, 8))
    wanted[:4, :4, :4] = 1 / 64
    drawn = np.random.default_rng(2).integers(4, size=(100, 3))
    for impossible in (7, 15):  # one of the eight tokens, and one that is never written at all
        drawn[0, 0] = impossible
        found = enumeration.g_tests(drawn, wanted, 0.01)[0]
        assert found.p_value == 0 and json.dumps(asdict(found), allow_nan=False)


def texts(seed: int, count: int, shift: float, prompts: int = 3) -> list[list[list[int]]]:
    rng = np.random.default_rng(seed)
    p = np.array([0.25 + shift, 0.25 - shift, 0.25, 0.25])
    return [[rng.choice(4, 10, p=p).tolist() for _ in range(count)] for _ in range(prompts)]


def test_the_permutation_test_holds_its_level_and_finds_a_shift() -> None:
    p_values = [permutation_test(texts(2 * seed, 12, 0), texts(2 * seed + 1, 12, 0), 0.01, seed).p_value for seed in range(60)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert permutation_test(texts(1, 24, 0), texts(2, 24, 0.12), 1e-4).p_value < 1e-4


@pytest.fixture(scope="module")
def target():
    return tiny_language_model()


def written(target, label: str, sampling: Sampling, count: int = 6) -> list[Text]:
    drafter = drafter_of(label, "llama")
    drafter.bind(target)
    target.tap(drafter.taps)
    made = []
    for at, prompt in enumerate(prompts(count)):
        own = replace(sampling, seed=at)
        made.append(Text(prompt.tolist(), generate(target, drafter, [prompt], own)[0].output_ids, own))
    return made


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=12), WARM])
def test_texts_are_followed_token_by_token(target, sampling: Sampling) -> None:
    ours = written(target, "pld", sampling)
    found = followed(target, ours, written(target, "autoregressive", sampling), 1e-6)
    assert (found.class_, found.equal, found.wrong, found.first) == ("exact", 6, 0, [])
    other = [[*ours[0].output[:5], (ours[0].output[5] + 1) % 128, *ours[0].output[6:]], *(text.output for text in ours[1:])]
    changed = [replace(text, output=output) for text, output in zip(ours, other, strict=True)]
    found = followed(target, changed, ours, 1e-6)
    assert found.class_ == "bug" and found.wrong == 1 and found.first[0][0] == 5 and found.first[0][1] > 0
    assert 1e-6 < float(misfits(target, changed[0])[5]) <= found.worst


def test_a_difference_within_the_rounding_is_a_tie(target) -> None:
    ours = written(target, "autoregressive", Sampling(max_new_tokens=12))
    logits = logits_of(target, ours[0])
    second = int(logits[-1].topk(2).indices[1])
    changed = [replace(ours[0], output=[*ours[0].output[:-1], second]), *ours[1:]]
    gap = float(logits[-1].max() - logits[-1, second])
    assert followed(target, changed, ours, gap * 1.01).class_ == "tie"
    assert followed(target, changed, ours, gap * 0.99).class_ == "bug"


def test_a_target_without_numbers_is_refused(target) -> None:
    text = written(target, "autoregressive", Sampling(max_new_tokens=4))[0]
    broken = tiny_model()
    broken.get_output_embeddings().weight.data.fill_(float("nan"))
    wrapped = LanguageModel(broken)
    assert followed(wrapped, [text], [text], 1e-6).wrong == 1
    with pytest.raises(InputError, match="no finite numbers"):
        noise_of(wrapped, [text], WARM)


@pytest.mark.parametrize("cut", ["short", "long", "behind a stop"])
def test_a_text_that_ends_elsewhere_is_a_bug(target, cut: str) -> None:
    (text, *_) = written(target, "autoregressive", Sampling(max_new_tokens=12))
    if cut == "short":
        wrong = replace(text, output=text.output[:-1])
    elif cut == "long":
        wrong = replace(text, sampling=replace(text.sampling, max_new_tokens=11))
    else:
        wrong = replace(text, sampling=replace(text.sampling, stop_token_ids=(text.output[3],)))
    found = followed(target, [wrong], [wrong], 1e9)
    assert (found.wrong, found.ended) == (1, 1)


def test_noise_is_how_far_the_target_differs_from_itself(target) -> None:
    noise = noise_of(target, written(target, "autoregressive", Sampling(max_new_tokens=12)), WARM)
    assert noise == Noise(1e-9, 1e-9), "in float64 there is next to none"
    low = LanguageModel(tiny_model(dtype=torch.bfloat16))
    noise = noise_of(low, written(low, "autoregressive", Sampling(max_new_tokens=12)), WARM)
    assert 1e-3 < noise.sampled < 0.3 and 1e-3 < noise.greedy < 3


def test_the_upper_limit_of_a_rate() -> None:
    assert most_wrong(0, 480) == pytest.approx(0.00622, abs=1e-5), "1 - 0.05 ** (1 / 480)"
    assert most_wrong(3, 3) == 1


def certificate(greedy: str = "exact", **config) -> Certificate:
    texts = {"texts": {"equal": 1, "texts": 1, "most_wrong": 0.95, "class_": greedy}}
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    whole = CONFIG | {"sampling": sampling, "method": {"pld": {"length": 10}}} | config
    verdicts = [Verdict("pld", greedy, texts)], [Verdict("pld", "sampled", texts, "why" * (greedy == "bug"))]
    return Certificate(PROVENANCE, whole, 0.01, {"greedy": 0.1, "sampled": 0.1}, {"texts": 1, "differing": 0}, *verdicts)


def test_a_certificate_goes_through_its_file(tmp_path: Path) -> None:
    made = certificate()
    assert read(made.write(tmp_path)) == made and made.given and not certificate("bug").given
    assert "| pld | exact | 1 of 1 | 95.0 % | sampled |" in markdown(made)
    assert "- **pld, sampled**: why" in markdown(certificate("bug"))
    made.greedy[0].tests["texts"]["first"] = [[6, 0.0123]]
    assert "- pld, greedily: texts differ first at token 7 (gap of the two best logits 0.0123)" in markdown(made)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(InputError, match="not a certificate"):
        read(tmp_path / FILE)


def test_a_run_is_covered_by_a_certificate_of_the_same_target_method_and_sampling(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    certificate().write(tmp_path / "results" / "certificates" / "one")
    (tmp_path / "results" / "certificates" / "old").mkdir()
    (tmp_path / "results" / "certificates" / "old" / FILE).write_text('{"schema": 0}')
    run = CONFIG | {"method": {"pld": {"length": 10}, "sps": {}}}
    assert known(run, PROVENANCE) == {"pld": Known("exact", "2026-11-20", texts=1, same_version=True)}
    others = [{"code_sha256": "another"}, {"codes": {"pld": "another"}}, {"continued": [{"code_sha256": "another"}]}]
    assert {str(known(run, PROVENANCE | other)["pld"]) for other in others} == {"exact, in another version"}
    assert known(run, PROVENANCE | {"codes": {"sps": "another"}})["pld"].same_version
    for at, class_ in enumerate(("untested", "tie", "bug", "exact")):
        replace(certificate(class_), about=PROVENANCE | {"started": f"2026-11-2{at}"}).write(
            Path("results/certificates") / class_
        )
        gravest = {"untested": "exact", "tie": "tie", "bug": "bug", "exact": "bug"}[class_]
        assert known(run, PROVENANCE)["pld"].class_ == gravest, f"behind {class_}"
    shutil.rmtree("results/certificates/bug")
    shutil.rmtree("results/certificates/tie")
    warm = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert str(known(run | {"sampling": warm}, PROVENANCE)["pld"]) == "sampled"
    others = [
        (run | {"sampling": warm | {"top_p": 0.9}}, PROVENANCE),
        (run | {"method": {"pld": {"length": 9}}}, PROVENANCE),
        (run | {"target": CONFIG["target"] | {"shape": None}}, PROVENANCE),
        (run, PROVENANCE | {"dtype": "float32"}),
        (run, PROVENANCE | {"target_sha256": "another"}),
        (run, PROVENANCE | {"checkpoints": {"pld": "another"}}),
        (run | {"target": CONFIG["target"] | {"config": {"layers": 2}}}, PROVENANCE),
        (run | {"target": CONFIG["target"] | {"shapes": {"100m": {"hidden_size": 1}}}}, PROVENANCE),
        (run | {"engine": {"hf": {"_target_": "specbench.engine.hf.HuggingFace"}}}, PROVENANCE),
    ]
    assert [known(*other) for other in others] == [{}] * len(others)


def overrides(out: Path, *more: str) -> list[str]:
    few = ["limit=1", "task=[qa]", "suite.per_task=2", "draws=256", "samples=8", "tokens=8", "sampling.max_new_tokens=16"]
    return ["target.dtype=float32", *few, f"out={out}", *more]


def test_certify_end_to_end(tmp_path: Path) -> None:
    told: list[str] = []
    config = composed(overrides(tmp_path / "sound", "method=[pld,sps,medusa_typical]"), root="certify")
    made, out = certify(config, lambda what, *_: told.append(what))
    assert made.given and {one.method: one.class_ for one in made.greedy} == dict.fromkeys(
        ["autoregressive", "pld", "sps", "medusa_typical"], "exact"
    )
    classes = {one.method: one.class_ for one in made.sampled}
    assert classes == {"autoregressive": "exact", "pld": "exact", "sps": "sampled", "medusa_typical": "lossy"}
    assert json.loads((out / FILE).read_text())["level"] == 0.01 and (out / "certificate.md").exists()
    assert "sps on the miniature target" in told


def test_a_method_that_is_not_what_it_claims_gets_no_certificate(tmp_path: Path) -> None:
    config = composed(overrides(tmp_path / "unsound", "method=[self_speculative]", "draws=512"), root="certify")
    with rule(AcceptsByP):
        made, _ = certify(config, lambda *_: None)
    assert not made.given and {one.method: one.class_ for one in made.sampled}["self_speculative"] == "bug"


def test_typical_acceptance_is_no_excuse_for_a_wrong_end(tmp_path: Path) -> None:
    config = composed(overrides(tmp_path / "endless", "method=[medusa_typical]"), root="certify")
    with patch("specbench.certify.following._ends_well", return_value=False):
        made, _ = certify(config, lambda *_: None)
    assert {one.method: one.class_ for one in made.sampled}["medusa_typical"] == "bug"
    assert "texts end elsewhere than they should" in made.sampled[-1].why


def test_a_baseline_that_stops_is_untested_and_no_traceback(tmp_path: Path) -> None:
    config = composed(overrides(tmp_path / "stopped", "method=[pld]"), root="certify")
    with patch("specbench.certify.certify.followed", side_effect=RuntimeError("out of memory")):
        made, _ = certify(config, lambda *_: None)
    assert {one.class_ for one in [*made.greedy, *made.sampled]} == {"untested"} and not made.given


def test_an_architecture_without_a_miniature_is_only_followed(tmp_path: Path) -> None:
    config = composed(overrides(tmp_path / "odd", "method=[pld]"), root="certify")
    with patch("specbench.certify.certify.miniature", side_effect=ValueError("no such thing")):
        made, out = certify(config, lambda *_: None)
    assert made.given and "pld was not counted out, only followed" in (out / "certificate.md").read_text()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match="expected an interrupted certificate's folder"):
        certify(composed(overrides(tmp_path), root="certify"), lambda *_: None)


def test_a_method_that_stops_gets_no_certificate_and_the_others_are_judged(tmp_path: Path) -> None:
    config = composed(overrides(tmp_path / "stopped", "method=[pld]"), root="certify")
    with patch("methods.pld.PromptLookup.propose", side_effect=ValueError("out of ideas")):
        made, out = certify(config, lambda *_: None)
    assert {one.method: one.class_ for one in made.greedy} == {"autoregressive": "exact", "pld": "untested"}
    assert "stopped: ValueError: out of ideas" in made.greedy[-1].why and not made.given
    assert "| pld | untested | - | - | untested | - | - | - |" in (out / "certificate.md").read_text()


def test_an_interrupted_certificate_goes_on(tmp_path: Path) -> None:
    asked = overrides(tmp_path, "method=[pld,medusa_typical]")
    with patch("methods.medusa.Medusa.propose", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        certify(composed(asked, root="certify"), lambda *_: None)
    assert not (tmp_path / FILE).exists()
    with pytest.raises(InputError, match="holds verdicts of another target"):
        certify(composed([*asked, "seed=1"], root="certify"), lambda *_: None)
    told: list[str] = []
    made, _ = certify(composed(asked, root="certify"), lambda what, *_: told.append(what))
    assert "pld answers greedily" not in told and "medusa_typical answers greedily" in told
    assert [one.class_ for one in made.greedy] == ["exact"] * 3 and sorted(path.name for path in tmp_path.iterdir()) == [
        "certificate.json",
        "certificate.md",
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["sampling.temperature=0.01"], "draws=256: too few at this temperature"),
        (["method=[sps]", "suite.per_task=1", "samples=8", "level=0.001"], "samples=8: too few for 1 prompt;"),
    ],
)
def test_what_could_show_nothing_is_refused_at_once(tmp_path: Path, more: list[str], message: str) -> None:
    told: list[str] = []
    with pytest.raises(InputError, match=message):
        certify(composed(overrides(tmp_path, *more), root="certify"), lambda what, *_: told.append(what))
    assert not told


def test_what_is_compared_is_drawn_afresh_where_it_looks_wrong() -> None:
    apart = [[[0, 1]] * 16] * 6, [[[2, 3]] * 16] * 6
    sound = [[[0, 1]] * 64] * 6, [[[0, 1]] * 64] * 6
    found = permutation.examined(lambda times: sound if times > 1 else apart, 1e-3)
    assert [one.p_value < 1e-3 for one in found] == [True, False] and found[1].samples == 384
    assert len(permutation.examined(lambda times: sound, 1e-3)) == 1


def test_a_certificate_is_not_written_over(tmp_path: Path) -> None:
    certificate().write(tmp_path)
    with pytest.raises(InputError, match="holds a certificate already"):
        certify(composed(overrides(tmp_path), root="certify"), lambda *_: None)


def test_every_test_of_a_certificate_can_fail_at_its_level() -> None:
    """However many methods share the level: a p-value can be a tenth of it."""
    apart = [[[0, 1]] * 16] * 6, [[[2, 3]] * 16] * 6
    assert permutation_test(*apart, level=1e-4).p_value < 1e-4
    one = [[[0, 1, 2]] * 7] * 3
    assert permutation_test(one, one, level=1e-2).p_value == 1, "nothing to be found, not even by rounding"
    with pytest.raises(ValueError, match="more samples"):
        permutation_test([[[0], [1]]], [[[2], [3]]], level=1e-2)
    nearly_certain = np.full((8, 8, 8), 1e-9)
    nearly_certain[0, 0, 0] = 1 - 511e-9
    with pytest.raises(ValueError, match="more draws"):
        enumeration.g_tests(np.zeros((300, 3), dtype=int), nearly_certain, 0.01)


@pytest.mark.parametrize("draws", [256, 1000, 8192])
def test_no_cell_expects_too_little(draws: int) -> None:
    wanted = np.random.default_rng(0).dirichlet(np.full(512, 0.1)) * draws
    _, expected = enumeration._pooled(wanted, wanted)
    assert expected.min() >= enumeration.LEAST_EXPECTED and expected.sum() == pytest.approx(draws)


def test_a_bug_of_the_engine_itself_is_no_rounding(tmp_path: Path) -> None:
    """What texts are held against must not come from the code that wrote them."""
    config = composed(overrides(tmp_path / "shifted", "method=[pld]", "limit=2", "sampling.max_new_tokens=48"), root="certify")
    with shifted():
        made, _ = certify(config, lambda *_: None)
    assert {one.method: one.class_ for one in made.greedy} == {"autoregressive": "exact", "pld": "bug"}
    assert made.noise["greedy"] < 0.01


@pytest.mark.parametrize("sampling", [replace(WARM, top_p=0.9), replace(WARM, top_p=1.0, top_k=10)])
def test_the_edge_of_the_nucleus_is_rounding(sampling: Sampling) -> None:
    """In bfloat16 a token falls in or out of it with the shape of the forward."""
    low = LanguageModel(tiny_model(dtype=torch.bfloat16))
    texts = written(low, "autoregressive", replace(sampling, max_new_tokens=64), count=24)
    assert followed(low, texts, texts, noise_of(low, texts, sampling).sampled).wrong == 0


def test_siblings_with_a_rank_left_out_are_drawn_one_after_the_other() -> None:
    paths = {"paths": [[0], [2], [0, 1], [0, 3]]}
    drafter = settled({"_target_": "methods.eagle.Eagle", "checkpoint": None, "tree": paths, "dtype": "auto"}, SMALL.draft)
    tests = enumeration.examined(SMALL.target, drafter, Sampling(temperature=1.0), 2048, 1e-3)[-1]
    assert min(test.p_value for test in tests) > 1e-3


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "phi3", "olmo2"])
def test_miniatures_of_other_architectures_write_eight_tokens(architecture: str) -> None:
    assert enumeration.exact(miniature(architecture)[0], Sampling(temperature=10.0)).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~method.autoregressive", "method: autoregressive is missing"),
        ("sampling.temperature=0", "expected a number from 0.01 to 10"),
        ("level=1e-9", "expected a probability, at least 0.0001"),
        ("draws=10", "at least 256"),
        ("samples=1", "at least 8"),
        ("out=/proc/nowhere/at/all", "nowhere"),
    ],
)
def test_bad_input_of_certify_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises((InputError, OSError), match=message):
        certify(composed(overrides(tmp_path, override), root="certify"), lambda *_: None)


def test_texts_of_one_token_are_followed(tmp_path: Path) -> None:
    made, _ = certify(composed(overrides(tmp_path, "sampling.max_new_tokens=1", "method=[]"), root="certify"), lambda *_: None)
    assert made.given
