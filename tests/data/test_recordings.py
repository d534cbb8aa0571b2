"""Names tell when held-out clips come from the same recordings as training clips, without false alarms."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from tada.data.hold_out import hold_out, hold_out_groups
from tada.data.recordings import shared_recordings
from tada.data.table import Head, LabeledVideo, VideoTable


def table_of(
    names: Mapping[str, Sequence[str]], *, kind: str = "folder", group_of: Mapping[str, str] | None = None
) -> VideoTable:
    """The videos of each class: in its folder, or for kind "CSV" where their names say."""
    labels = tuple(sorted(names))
    videos = []
    for label in labels:
        for name in names[label]:
            path = name if kind == "CSV" else f"{label}/{name}"
            videos.append(
                LabeledVideo(
                    path=f"/data/{path}",
                    labels=(labels.index(label),),
                    split=None,
                    group=(group_of or {}).get(name.split("_")[0]),
                    source="here",
                    id=path,
                )
            )
    return VideoTable(heads=(Head(name="action", labels=labels),), videos=tuple(videos), root="/data", kind=kind)


def advice(table: VideoTable, *, fraction: float = 0.3) -> str:
    return shared_recordings(hold_out(table, fraction=fraction, seed=0))


def numbered(pattern: str, *counts: range) -> list[str]:
    if len(counts) == 1:
        return [pattern.format(i) for i in counts[0]]
    return [pattern.format(i, j) for i in counts[0] for j in counts[1]]


CLASSES = ("push", "pull")
RECORDINGS = {
    "people": [f"{who}_{i:02}.mp4" for who in ("anna", "ben", "carl") for i in range(4)],
    "glued": [f"{who}{i}.mp4" for who in ("anna", "ben") for i in range(3)],
    "copies": [f"{who} ({i}).MOV" for who in ("kitchen", "garden") for i in range(1, 6)],
    "days of a phone": numbered("VID_2024013{}_12{:04}.mp4", range(3), range(5)),
    "times with signs": numbered("2024-01-0{}-10-2{}-03.mkv", range(1, 5), range(4)),
}
ONLY_NAMES = {
    "numbers": numbered("{}.mp4", range(12)),
    "numbers with zeros": numbered("{:04}.mp4", range(12)),
    "one word": numbered("video{}.mp4", range(12)),
    "a camera's counter": numbered("IMG_2{:03}.MOV", range(12)),
    "two words of no meaning": [*numbered("clip_{}.mp4", range(6)), *numbered("video_{}.mp4", range(6))],
    "copies of one word": numbered("clip ({}).mp4", range(12)),
    "a stray name": [*numbered("take_{}.mp4", range(11)), "door_1.mp4"],
    "words": [f"{word}.mp4" for word in "ant bee cat dog eel fox gnu hen owl pig rat sow".split()],  # noqa: SIM905
    "drawn at random": [f"{random.Random(i).getrandbits(32):08x}.mp4" for i in range(40)],
    "ids of the web, and times": [f"{random.Random(i).getrandbits(64):x}_{i:06}_{i + 10:06}.mp4" for i in range(40)],
}


@pytest.mark.parametrize("kind", RECORDINGS)
def test_clips_of_one_recording_on_both_sides_are_told(kind: str) -> None:
    line = advice(table_of(dict.fromkeys(CLASSES, RECORDINGS[kind])))
    assert "held-out clips may be of recordings that are trained on as well, such as " in line
    assert "with a column 'group'" in line
    assert line.endswith("--val-groups")
    assert "\n" not in line


@pytest.mark.parametrize("kind", ONLY_NAMES)
def test_names_that_say_nothing_of_recordings_are_no_alarm(kind: str) -> None:
    assert advice(table_of(dict.fromkeys(CLASSES, ONLY_NAMES[kind]))) == ""


def test_the_name_of_the_class_is_no_recording() -> None:
    named = {label: [f"{label}_{i:03}.mp4" for i in range(10)] for label in CLASSES}
    assert advice(table_of(named)) == ""
    both = {"open": numbered("open_{}.mp4", range(8)), "open door": numbered("open_door_{}.mp4", range(8))}
    assert advice(table_of(both)) == ""
    with_people = {label: [f"{label}_{who}_{i}.mp4" for who in ("anna", "ben") for i in range(4)] for label in CLASSES}
    assert "'pull/pull_" in advice(table_of(with_people))


def test_one_recording_for_each_class_cannot_be_held_out() -> None:
    """Another word in each class: nothing that could be held out whole, so nothing is recommended."""
    assert (
        advice(table_of({"push": numbered("monday_{}.mp4", range(9)), "pull": numbered("friday_{}.mp4", range(9))}))
        == ""
    )


def test_ucf101_is_told_by_groups_of_names() -> None:
    names = {
        label: [f"v_{label}_g{group:02}_c{clip:02}.avi" for group in range(1, 8) for clip in range(1, 5)]
        for label in ("Archery", "Biking")
    }
    line = advice(table_of(names), fraction=0.2)
    assert "'Archery/v_Archery_g" in line


def test_a_folder_of_a_day_in_a_list_is_told() -> None:
    days = {label: [f"day{day}/{label}{i}.mp4" for day in (1, 2, 3) for i in range(4)] for label in CLASSES}
    assert "such as 'day" in advice(table_of(days, kind="CSV"))
    dates = {label: [f"2024-01-0{day}/{label}{i}.mp4" for day in (1, 2, 3) for i in range(4)] for label in CLASSES}
    assert "such as '2024-01-0" in advice(table_of(dates, kind="CSV"))


@pytest.mark.parametrize("folder", ["part{}", "shard_{}", "videos/{}", "{:03}"])
def test_folders_made_for_storage_are_no_recordings(folder: str) -> None:
    names = {
        label: [f"{folder.format(part)}/{label}{i}.mp4" for part in (1, 2, 3) for i in range(4)] for label in CLASSES
    }
    assert advice(table_of(names, kind="CSV")) == ""


def test_class_folders_in_a_list_are_no_recordings() -> None:
    names = {label: [f"{label}/{i}.mp4" for i in range(9)] for label in CLASSES}
    assert advice(table_of(names, kind="CSV")) == ""


def test_groups_of_the_data_are_named() -> None:
    people = {"anna": "a", "ben": "b", "carl": "c"}
    names = {label: [f"{who}_{i}.mp4" for who in people for i in range(4)] for label in CLASSES}
    table = table_of(names, group_of=people)
    line = advice(table)
    assert "held-out clips are of groups that are trained on as well" in line
    group = line.split("--val-groups ")[1]
    assert group in people.values()
    assert shared_recordings(hold_out_groups(table, [group])) == ""


def test_without_a_held_out_part_nothing_is_said() -> None:
    table = table_of(dict.fromkeys(CLASSES, RECORDINGS["people"]))
    assert shared_recordings(table) == ""
