"""What a test found: numbers by hand, files that come back the same, ensembles, EPIC-KITCHENS' own counting."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tada.commands import cli
from tada.data.table import Head, Unreadable
from tada.data.views import Views
from tada.errors import DataError, OptionError
from tada.recognition.epic_challenge import Subsets, challenge_metrics, read_subsets, write_challenge
from tada.recognition.results import UNKNOWN, ActionsBy, Evaluation, counted_by, ensemble, load_scores


@pytest.fixture
def simple() -> Evaluation:
    return Evaluation(
        heads=(Head(name="action", labels=("a", "b", "c")),),
        ids=("1.mp4", "2.mp4", "3.mp4", "4.mp4"),
        paths=("/1.mp4", "/2.mp4", "/3.mp4", "/4.mp4"),
        groups=(None, None, None, None),
        targets=np.array([[0], [0], [1], [1]]),
        scores=np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]], dtype=np.float32),
        unreadable=(Unreadable("/5.mp4", "5 is empty"),),
        views=(Views(num_clips=10, num_crops=3),),
    )


def probabilities(rng: np.random.Generator, n: int, classes: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    scores = rng.random((n, classes)) ** 4
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def epic() -> Evaluation:
    """Forty segments of three verbs and five nouns, by four participants."""
    rng = np.random.default_rng(0)
    return Evaluation(
        heads=(Head(name="verb", labels=("take", "put", "cut")), Head(name="noun", labels=tuple("abcde"))),
        ids=tuple(f"P0{i % 4}_01_{i}" for i in range(40)),
        paths=tuple(f"/P0{i % 4}_01.MP4" for i in range(40)),
        groups=tuple(f"P0{i % 4}" for i in range(40)),
        targets=np.stack([rng.integers(0, 3, 40), rng.integers(0, 5, 40)], 1),
        scores=np.concatenate([probabilities(rng, 40, 3), probabilities(rng, 40, 5)], 1),
        unreadable=(),
        views=(Views(),),
    )


def test_numbers_and_files_of_a_report(simple: Evaluation, tmp_path: Path) -> None:
    assert simple.accuracy(1) == pytest.approx(0.5)
    assert simple.accuracy(2) == pytest.approx(1.0)
    assert simple.accuracy(5) == pytest.approx(1.0)  # more than there are classes
    assert simple.labels == ("a", "b", "c")
    np.testing.assert_array_equal(simple.confusion(), [[1, 1, 0], [0, 1, 1], [0, 0, 0]])
    assert simple.per_class() == {"a": (0.5, 2), "b": (0.5, 2)}
    simple.save(tmp_path / "report")
    summary = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert summary["top1"] == pytest.approx(0.5)
    assert summary["interval_95"]["top1"] == pytest.approx([0.150, 0.850], abs=5e-4)  # 2 of 4
    assert summary["interval_95"]["top5"] == pytest.approx([0.510, 1.0], abs=5e-4)
    assert simple.shown_metrics() == {"top1": 0.5}, "top-5 of three classes says nothing"
    assert summary["views"] == "10x3"
    assert summary["videos_read"] == 4
    assert summary["videos_unreadable"] == [{"path": "/5.mp4", "message": "5 is empty"}]
    with (tmp_path / "report" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {"path": "/2.mp4", "label": "a", "a": "0.300000", "b": "0.600000", "c": "0.100000"}
    assert (tmp_path / "report" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    names = {"evaluation.json", "scores.csv", "scores.npz", "confusion.png"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names


def same(one: Evaluation, other: Evaluation) -> bool:
    arrays = np.array_equal(one.scores, other.scores) and np.array_equal(one.targets, other.targets)
    empty = np.zeros((0, 0))
    return arrays and replace(one, scores=empty, targets=empty) == replace(other, scores=empty, targets=empty)


@pytest.mark.parametrize("which", ["simple", "epic"])
def test_scores_come_back_as_they_were(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    test: Evaluation = request.getfixturevalue(which)
    test.save(tmp_path / "run" / "evaluation")
    for place in (tmp_path / "run", tmp_path / "run" / "evaluation", tmp_path / "run" / "evaluation" / "scores.npz"):
        again = load_scores(place)
        assert again.metrics() == test.metrics()
        assert same(again, test)
    file = tmp_path / "run" / "evaluation" / "scores.npz"
    whole = file.read_bytes()
    for damaged in (b"", b"PK\x03\x04", whole[: len(whole) // 2], b"\x80\x04N."):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"scores\.npz is damaged, or was not written by tada"):
            load_scores(file)
    with pytest.raises(DataError, match=r"holds no scores\.npz: give the folder of a report"):
        load_scores(tmp_path)


def test_an_ensemble_is_the_mean_by_video(simple: Evaluation) -> None:
    """The second test has its videos in another order."""
    order = [2, 0, 3, 1]
    other = replace(
        simple,
        ids=tuple(simple.ids[i] for i in order),
        targets=simple.targets[order],
        scores=1 - simple.scores[order],
        views=(Views(num_clips=2),),
    )
    both = ensemble([simple, other])
    np.testing.assert_allclose(both.scores, 0.5, rtol=1e-6)
    assert both.ids == simple.ids
    assert " + ".join(map(str, both.views)) == "10x3 + 2x1"
    assert same(ensemble([simple]), simple)


def test_what_does_not_go_together_is_refused(simple: Evaluation, epic: Evaluation) -> None:
    with pytest.raises(DataError, match=r"scores of test 2 are of other classes"):
        ensemble([simple, epic])
    with pytest.raises(DataError, match=r"2 are in one only, such as '1\.mp4'; evaluate both"):
        ensemble([simple, replace(simple, ids=("9.mp4", *simple.ids[1:]))])
    with pytest.raises(DataError, match=r"test 2 has other true classes"):
        ensemble([simple, replace(simple, scores=1 - simple.scores, targets=1 - simple.targets)])
    with pytest.raises(DataError, match="the scores of test 2 are the first's: give tests of other models or views"):
        ensemble([simple, simple])


def test_scores_of_others_are_not_written_over(simple: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("mine")
    with pytest.raises(OptionError, match=r"holds a report \(scores\.csv\)"):
        simple.save(tmp_path)
    assert (tmp_path / "scores.csv").read_text() == "mine"


# --- verbs, nouns, actions -------------------------------------------------------------------------------------------


def slow_action_accuracy(test: Evaluation, top_k: int) -> float:
    """By sorting all combinations of each video."""
    right = []
    views = test.view_scores if test.actions == "views" else test.scores[:, None]
    assert views is not None
    for video, truth in zip(views.astype(float), test.targets, strict=True):
        joint = {pair: sum(view[pair[0]] * view[3 + pair[1]] for view in video) for pair in product(range(3), range(5))}
        right.append(tuple(truth) in sorted(joint, key=lambda pair: -joint[pair])[:top_k])
    return float(np.mean(right))


def test_actions_by_the_mean_of_the_views_products(epic: Evaluation, tmp_path: Path) -> None:
    """Two views, one sure of (0, 0), the other of (1, 1): by their means, (0, 1) is as probable."""
    rng = np.random.default_rng(1)
    drawn = [np.concatenate([probabilities(rng, 40, 3), probabilities(rng, 40, 5)], 1) for _ in range(4)]
    drawn[0][0], drawn[1][0] = [0.9, 0.1, 0, 0.9, 0.1, 0, 0, 0], [0.1, 0.9, 0, 0.1, 0.9, 0, 0, 0]
    each = np.stack(drawn, 1)
    tests = [
        replace(epic, scores=e.mean(1), view_scores=e, views=(Views(num_clips=2),), actions="views")
        for e in (each[:, :2], each[:, 2:])
    ]
    np.testing.assert_allclose(tests[0].joint_scores(0)[:2, :2], [[0.41, 0.09], [0.09, 0.41]], rtol=1e-6)
    np.testing.assert_allclose(counted_by(tests[0], "means").joint_scores(0)[:2, :2], 0.25, rtol=1e-6)
    both = ensemble(tests)
    np.testing.assert_allclose(both.joint_scores(5), (tests[0].joint_scores(5) + tests[1].joint_scores(5)) / 2)
    assert slow_action_accuracy(both, 5) != slow_action_accuracy(counted_by(both, "means"), 5)
    for test in (*tests, both, counted_by(both, "means"), both.part(np.arange(40) % 3 == 1)):
        assert [test.action_accuracy(k) for k in (1, 5)] == [slow_action_accuracy(test, k) for k in (1, 5)]
    both.save(tmp_path)
    assert np.array_equal(load_scores(tmp_path).view_scores, both.view_scores)
    assert json.loads((tmp_path / "evaluation.json").read_text())["actions"] == "views"
    write_challenge(both, tmp_path / "test.json")
    action = json.loads((tmp_path / "test.json").read_text())["results"][both.ids[7]]["action"]
    assert action["2,4"] == pytest.approx(both.joint_scores(7)[2, 4])
    means = counted_by(both, "means")
    means.save(tmp_path, overwrite=True)
    assert json.loads((tmp_path / "evaluation.json").read_text())["actions"] == "means"
    np.testing.assert_array_equal(counted_by(load_scores(tmp_path), "views").joint_scores(5), both.joint_scores(5))
    with pytest.raises(DataError, match=r"means over the views of a video: .* \(each model of an ensemble\)"):
        counted_by(ensemble([tests[0], replace(tests[1], view_scores=None, actions="means")]), "views")


def test_tests_of_one_view_or_of_other_numbers_of_views_are_counted_by_views(epic: Evaluation) -> None:
    rng = np.random.default_rng(2)

    def drawn(num: int, actions: ActionsBy) -> Evaluation:
        each = np.stack([np.concatenate([probabilities(rng, 40, k) for k in (3, 5)], 1) for _ in range(num)], 1)
        views = (Views(num_clips=num),)
        return replace(epic, scores=each.mean(1), view_scores=None if num == 1 else each, views=views, actions=actions)

    one, two, three = drawn(1, "means"), drawn(2, "views"), drawn(3, "views")
    np.testing.assert_allclose(counted_by(one, "views").joint_scores(4), one.joint_scores(4))
    joined = ensemble([one, two, three])  # one view's actions are the same either way
    assert joined.actions == "views"
    joint = np.mean([test.joint_scores(4) for test in (one, two, three)], axis=0)
    np.testing.assert_allclose(joined.joint_scores(4), joint, rtol=1e-6)
    assert ensemble([two, replace(three, actions="means")]).actions == "means"
    pair = ensemble([one, drawn(1, "means")])
    assert pair.actions == "means"
    assert counted_by(pair, "views").joint_scores(4)[0, 0] != pytest.approx(pair.joint_scores(4)[0, 0])


def test_a_report_scored_the_other_way_agrees_with_itself(
    epic: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    each = np.stack([epic.scores, epic.scores[::-1]], 1)
    test = replace(epic, scores=each.mean(1), view_scores=each, views=(Views(num_clips=2),), actions="views")
    test.save("report")
    again = ["evaluate", "--scores", "report", "--actions"]
    before = Path("report/evaluation.json").read_bytes()
    assert cli.main([*again, "means"]) == 2
    assert "the report in 'report' counts actions otherwise: give the new one a folder" in capsys.readouterr().err
    assert cli.main([*again, "views"]) == 0
    assert Path("report/evaluation.json").read_bytes() == before
    assert cli.main([*again, "means", "--overwrite"]) == 0
    numbers = json.loads(Path("report/evaluation.json").read_text())
    assert (numbers["actions"], numbers["action_top5"]) == ("means", counted_by(test, "means").action_accuracy(5))
    assert f"{numbers['action_top5']:.4f}" in Path("report/report.html").read_text()
    assert np.array_equal(load_scores(Path("report")).view_scores, each), "so it can be scored back"


def test_one_head_has_no_actions(simple: Evaluation) -> None:
    with pytest.raises(OptionError, match=r"--actions views: these scores have one head \(action\)"):
        counted_by(simple, "views")


def test_actions_are_ranked_by_the_product_of_both_marginals(epic: Evaluation) -> None:
    for k in (1, 2, 5):
        assert epic.action_accuracy(k) == pytest.approx(slow_action_accuracy(epic, k))
    both = (epic.scores[:, :3].argmax(1) == epic.targets[:, 0]) & (epic.scores[:, 3:].argmax(1) == epic.targets[:, 1])
    assert epic.action_accuracy(1) == pytest.approx(both.mean())
    metrics = epic.metrics()
    assert list(metrics) == ["verb_top1", "verb_top5", "noun_top1", "noun_top5", "action_top1", "action_top5"]
    assert metrics.keys() - epic.shown_metrics().keys() == {"verb_top5", "noun_top5"}, "15 actions have a top-5"
    assert metrics["noun_top1"] == pytest.approx((epic.scores[:, 3:].argmax(1) == epic.targets[:, 1]).mean())


def test_combinations_that_are_equally_probable_are_not_all_right(epic: Evaluation) -> None:
    even = replace(epic, scores=np.full_like(epic.scores, 0.2))
    assert even.action_accuracy(1) == 0
    assert even.action_accuracy(15) == 1


def test_subsets_are_counted_as_the_challenge_does(epic: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "EPIC_100_unseen_participant_ids_validation.csv").write_text("participant_id\nP02\nP03\n")
    (tmp_path / "EPIC_100_tail_verbs.csv").write_text("verb\n2\n")
    (tmp_path / "EPIC_100_tail_nouns.csv").write_text("noun\n0\n4\n")
    subsets = read_subsets(tmp_path)
    assert subsets.tail_nouns == {0, 4}
    found = challenge_metrics(epic, subsets)
    verb, noun = epic.scores[:, :3].argmax(1) == epic.targets[:, 0], epic.scores[:, 3:].argmax(1) == epic.targets[:, 1]
    unseen = np.arange(40) % 4 >= 2
    tail_verb, tail_noun = epic.targets[:, 0] == 2, np.isin(epic.targets[:, 1], [0, 4])
    expected = {
        "unseen_verb_top1": verb[unseen].mean(),
        "unseen_noun_top1": noun[unseen].mean(),
        "unseen_action_top1": (verb & noun)[unseen].mean(),
        "tail_verb_top1": verb[tail_verb].mean(),
        "tail_noun_top1": noun[tail_noun].mean(),
        "tail_action_top1": (verb & noun)[tail_verb | tail_noun].mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert {name: found[name] for name in epic.metrics()} == epic.metrics()
    nobody = replace(subsets, unseen_participants=frozenset())
    assert not any(name.startswith("unseen") for name in challenge_metrics(epic, nobody))

    (tmp_path / "EPIC_100_tail_nouns.csv").write_text("noun_class\n0\n")
    with pytest.raises(DataError, match=r"EPIC_100_tail_nouns\.csv cannot be read as a list of noun"):
        read_subsets(tmp_path)


def test_the_challenges_file(epic: Evaluation, simple: Evaluation, tmp_path: Path) -> None:
    hidden = replace(epic, targets=np.full_like(epic.targets, UNKNOWN))
    write_challenge(hidden, tmp_path / "test.json", pretraining=1)
    whole = json.loads((tmp_path / "test.json").read_text())
    assert {name: whole[name] for name in ("version", "challenge", "sls_pt", "sls_tl", "sls_td")} == {
        "version": "0.2",
        "challenge": "action_recognition",
        "sls_pt": 1,
        "sls_tl": 3,
        "sls_td": 3,
    }
    assert set(whole["results"]) == set(epic.ids)
    one = whole["results"]["P03_01_7"]
    assert one["verb"]["2"] == pytest.approx(epic.scores[7, 2])
    assert list(one["noun"]) == ["0", "1", "2", "3", "4"]
    assert len(one["action"]) == 15  # at most a hundred
    best = max(one["action"], key=one["action"].get)
    assert best == f"{epic.scores[7, :3].argmax()},{epic.scores[7, 3:].argmax()}"
    assert one["action"][best] == pytest.approx(epic.scores[7, :3].max() * epic.scores[7, 3:].max())

    with pytest.raises(OptionError, match=r"EPIC-KITCHENS counts verbs and nouns; this test is of action"):
        write_challenge(simple, tmp_path / "no.json")
    with pytest.raises(OptionError, match=r"sls_td=9: a level of supervision is from 0 to 5"):
        write_challenge(epic, tmp_path / "no.json", training_data=9)
    with pytest.raises(OptionError, match=r"true verbs and nouns are not known"):
        challenge_metrics(
            hidden, Subsets(unseen_participants=frozenset(), tail_verbs=frozenset(), tail_nouns=frozenset())
        )


def test_a_test_without_true_classes_has_scores_alone(epic: Evaluation, tmp_path: Path) -> None:
    hidden = replace(epic, targets=np.full_like(epic.targets, UNKNOWN))
    assert hidden.metrics() == {}
    assert np.isnan(hidden.accuracy())
    hidden.save(tmp_path)
    assert same(load_scores(tmp_path), hidden)
    assert not list(tmp_path.glob("*.png"))
