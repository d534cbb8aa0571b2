"""Scores of detections: against the official evaluations' numbers, and against a scorer that uses no arrays."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import detections as slow
from tada.errors import DataError, OptionError
from tada.localization.metrics import (
    ANET_TIOUS,
    average_recall,
    detection_map,
    epic_map,
    recall_at_kx,
)

CASES = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "tal_cases.json").read_text())["cases"]
}
MAPS = [name for name, case in CASES.items() if case["task"] == "detection_mAP"]
BASIC = CASES["basic_envelope"]


def scored(name: str) -> Any:
    case = CASES[name]
    return detection_map(
        case["ground_truth"], case["predictions"], subset=case["subset"], tiou_thresholds=case["tiou_thresholds"]
    )


@pytest.mark.parametrize("name", [name for name in MAPS if name not in ("score_tie", "gt_duplicate_and_zero_length")])
def test_the_official_cases(name: str) -> None:
    scores, expected = scored(name), CASES[name]["expected"]
    assert scores.tiou_thresholds == tuple(CASES[name]["tiou_thresholds"])
    assert scores.per_threshold == pytest.approx(list(expected["mAP"].values()), abs=1e-9)
    assert scores.average == pytest.approx(expected["average_mAP"], abs=1e-9)


def test_duplicates_and_empty_segments_do_not_count_and_that_is_said() -> None:
    message = r"2 of 4 ground-truth segments do not count \(1 empty, 1 duplicates\); the first: 'v1' \[1.0005, 3.0004\]"
    with pytest.warns(UserWarning, match=message):
        scores = scored("gt_duplicate_and_zero_length")
    assert scores.average == pytest.approx(1.0, abs=1e-9)
    assert scores.num_ground_truth == 2


def test_ties_keep_their_order() -> None:
    """Official code puts the last of two equal scores first, and so finds 0.5 here."""
    assert scored("score_tie").per_threshold == pytest.approx([1.0] * 10, abs=1e-9)


def test_epic_kitchens() -> None:
    case = CASES["ek100_verb_noun_action_with_unseen_label"]
    scores = epic_map(case["ground_truth"]["rows"], case["predictions"], tiou_thresholds=case["tiou_thresholds"])
    for task in ("verb", "noun", "action"):
        mine, expected = getattr(scores, task), case["expected"][task]
        assert mine.per_threshold == pytest.approx(list(expected["mAP"].values()), abs=1e-9)
        assert mine.average == pytest.approx(expected["average_mAP"], abs=1e-9)
    assert scores.verb.per_class.keys() == {"3", "7"}
    assert scores.action.per_class.keys() == {str(3 * 300 + 10), str(7 * 300 + 2), str(3 * 300 + 2)}


def test_epic_kitchens_tells_a_faulty_row_and_a_faulty_prediction() -> None:
    rows = [{"video_id": "P01_01", "start_timestamp": "one", "stop_timestamp": "2", "verb_class": 1, "noun_class": 2}]
    with pytest.raises(DataError, match="ground truth row 1: 'one' is not a time"):
        epic_map(rows, {"results": {}})
    rows[0]["start_timestamp"] = "00:00:01.00"
    bad = {"results": {"P01_01": [{"segment": [0, 1], "score": 1, "verb": "take", "noun": 3}]}}
    with pytest.raises(DataError, match="verb 'take' and noun 3 of a prediction should be class numbers"):
        epic_map(rows, bad)


def test_average_recall() -> None:
    case = CASES["ar_an"]
    recall = average_recall(
        case["ground_truth"],
        case["predictions"],
        subset=case["subset"],
        max_average_proposals=case["max_avg_nr_proposals"],
        tiou_thresholds=case["tiou_thresholds"],
    )
    expected = case["expected"]
    assert recall.average_recall == pytest.approx([expected[f"AR@{k}"] for k in (1, 2, 3)], abs=1e-9)
    assert recall.auc == pytest.approx(expected["AUC"], abs=1e-9)
    assert recall.average_proposals == pytest.approx([1, 2, 3])
    with pytest.raises(OptionError, match="AR@4 was not measured"):
        recall.at(4)


def random_case(seed: int, *, num_predictions: int = 60) -> tuple[dict[str, Any], dict[str, Any]]:
    """Some videos and classes, predictions near and far; scores of one decimal tie often."""
    rng = np.random.default_rng(seed)

    def segment() -> list[float]:
        start = float(rng.uniform(0, 30))
        return [start, start + float(rng.uniform(0.5, 10))]

    database, results = {}, {}
    for i in range(5):
        annotations = [{"segment": segment(), "label": f"c{rng.integers(3)}"} for _ in range(rng.integers(0, 6))]
        database[f"v{i}"] = {"duration": 40.0, "subset": "validation", "annotations": annotations}
        found = []
        for _ in range(num_predictions // 5):
            place = segment()
            if annotations and rng.random() < 0.6:
                near = annotations[rng.integers(len(annotations))]["segment"]
                place = [near[0] + rng.normal(0, 0.5), near[1] + rng.normal(0, 0.5)]
            found.append({"segment": place, "label": f"c{rng.integers(4)}", "score": round(float(rng.random()), 1)})
        results[f"v{i}"] = found
    database["v0"]["annotations"].append({"segment": [1.0, 2.0], "label": "c0"})  # never quite empty
    return {"database": database}, {"results": results}


@pytest.mark.parametrize("seed", range(20))
def test_mean_average_precision_is_that_of_the_slow_scorer(seed: int) -> None:
    truth, results = random_case(seed)
    scores = detection_map(truth, results, subset="validation")
    expected = [slow.mean_average_precision(truth, results, threshold) for threshold in ANET_TIOUS]
    np.testing.assert_allclose(scores.per_threshold, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_average_recall_is_that_of_the_slow_scorer(seed: int) -> None:
    truth, results = random_case(seed)
    for _, found in results["results"].items():  # classes play no part, and equal scores would leave a choice
        for place, prediction in enumerate(found):
            prediction["score"] += 0.001 * place
    recall = average_recall(truth, results, subset="val", max_average_proposals=10, tiou_thresholds=[0.3, 0.6])
    truths = {
        video: [tuple(a["segment"]) for a in about["annotations"]]
        for video, about in truth["database"].items()
        if about["annotations"]
    }
    proposals = {v: [(tuple(p["segment"]), p["score"]) for p in found] for v, found in results["results"].items()}
    _, counts = slow.proposals_kept({v: len(found) for v, found in proposals.items()}, list(truths), 10)
    for k in range(1, 11):
        expected = np.mean([slow.recall_at(truths, proposals, counts[k - 1], t) for t in (0.3, 0.6)])
        assert recall.at(k) == pytest.approx(expected, abs=1e-12)


def test_proposals_are_counted_as_the_official_evaluation_truncates() -> None:
    """One proposal of each video finds its segment, so that each recall tells how many proposals were counted.

    Where a product is a whole number but for rounding, a grace of 1e-9 would count one proposal more.
    """
    rng = np.random.default_rng(0)
    differ = 0
    for _ in range(40):
        most, lengths = int(rng.integers(5, 101)), rng.integers(1, 60, int(rng.integers(1, 6))).tolist()
        names = [f"v{i}" for i in range(len(lengths))]
        wins = [int(rng.integers(0, length)) for length in lengths]
        database = {v: {"subset": "val", "annotations": [{"segment": [0, 1], "label": "a"}]} for v in names}
        results = {
            v: [{"segment": [0, 1] if i == win else [2, 3], "score": float(-i)} for i in range(length)]
            for v, length, win in zip(names, lengths, wins, strict=True)
        }
        recall = average_recall(
            {"database": database},
            {"results": results},
            subset="val",
            max_average_proposals=most,
            tiou_thresholds=[0.5],
        )
        kept, counts = slow.proposals_kept(dict(zip(names, lengths, strict=True)), names, most)
        for k, count in enumerate(counts, start=1):
            found = sum(count[v] > win for v, win in zip(names, wins, strict=True))
            assert recall.at(k) == found / len(names)
            part = k / most * (most * len(names) / sum(kept.values()))
            differ += any(min(int(kept[v] * part + 1e-9), kept[v]) != count[v] for v in names)
    assert differ > 0


def test_proposals_that_leave_none_are_told() -> None:
    truth = {"database": {"v": {"subset": "val", "annotations": [{"segment": [0, 1], "label": "a"}]}}}
    entry = {"segment": [0, 1], "score": 1.0}
    results = {"results": {"v": [entry], "elsewhere": [entry] * 9}}
    with pytest.raises(DataError, match="of 10 proposals, 1 a video on average keep none of those on the videos"):
        average_recall(truth, results, subset="val", max_average_proposals=1)


def test_recall_at_k_times() -> None:
    """Two of class a in v1, of which the best two predictions find one and the best four both; b is never found."""
    truth = {
        "database": {
            "v1": {
                "subset": "val",
                "annotations": [
                    {"segment": [0, 10], "label": "a"},
                    {"segment": [20, 30], "label": "a"},
                    {"segment": [40, 50], "label": "b"},
                ],
            }
        }
    }
    found = [([0, 10], 0.9), ([0, 9], 0.8), ([60, 70], 0.7), ([20, 26], 0.6), ([40, 50], 0.95)]
    results = {"results": {"v1": [{"segment": s, "score": score, "label": "a"} for s, score in found]}}
    # Best two: [40, 50] and [0, 10]; best four: [0, 9] and [60, 70] too.
    assert recall_at_kx(truth, results, subset="val", k=1, tiou_thresholds=[0.5, 0.95]) == (0.25, 0.25)
    assert recall_at_kx(truth, results, subset="val", k=3, tiou_thresholds=[0.5, 0.7]) == (0.5, 0.25)


def test_splits_may_be_named_either_way() -> None:
    assert (
        detection_map(BASIC["ground_truth"], BASIC["predictions"], subset="val").average
        == scored(BASIC["name"]).average
    )


def test_the_scores_as_plain_values() -> None:
    entry = json.loads(json.dumps(scored("basic_envelope").as_dict()))
    assert entry["map"]["0.95"] == pytest.approx(1 / 3)
    assert entry["per_class"]["jump"] == entry["average_map"] == pytest.approx(0.716666666666)
    assert (entry["ground_truth"], entry["predictions"]) == (3, 4)


def faulty(change: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    truth, found, options = deepcopy(BASIC["ground_truth"]), deepcopy(BASIC["predictions"]), {"subset": "validation"}
    if change == "other subset":
        options["subset"] = "testing"
    elif change == "nan":
        found["results"]["v1"][1]["score"] = float("nan")
    elif change == "no label":
        del found["results"]["v2"][0]["label"]
    elif change == "text":
        truth["database"]["v1"]["annotations"][0]["segment"] = ["soon", 3]
    elif change == "threshold":
        options["tiou_thresholds"] = [0.5, 50]
    elif change == "empty":
        for about in truth["database"].values():
            for annotation in about["annotations"]:
                annotation["segment"] = [3.0, 3.0]
    return truth, found, options


@pytest.mark.filterwarnings("ignore:.*do not count")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("other subset", r"no segments in its subset 'testing'; its subsets are validation"),
        ("nan", r"score of prediction 2 of video 'v1': \[nan\] is not finite"),
        ("no label", r"prediction 1 of video 'v2' has no 'label'"),
        ("text", r"ground truth of video 'v1': \['soon', 3\] should be numbers"),
        ("threshold", r"tiou_thresholds \[0.5, 50\] should be a list of numbers in \(0, 1\]"),
        ("empty", r"all segments of the ground truth are empty"),
    ],
)
def test_what_is_wrong_is_said(change: str, message: str) -> None:
    truth, found, options = faulty(change)
    with pytest.raises((DataError, OptionError), match=message):
        detection_map(truth, found, **options)
