"""Annotations of the tools that people label with: a miniature of each export, and those of other versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_localization_annotations import seen

from drawn_frames import write_frames
from drawn_videos import draw_plain, draw_variable_rate
from tada.errors import DataError
from tada.localization.annotations.table import read_segments
from tada.video.reader import open_video


def save(file: Path, content: str | object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_text(text, encoding="utf-8")
    return file


# -- CVAT -------------------------------------------------------------------------------------------------------------

META = """<version>1.1</version><meta><task><id>7</id><name>kitchen</name><size>40</size><mode>interpolation</mode>
<start_frame>0</start_frame><stop_frame>39</stop_frame>{filter}
<labels><label><name>open door</name><attributes></attributes></label></labels>
<source>{source}</source></task><dumped>2024-01-01</dumped></meta>"""


def cvat(body: str, source: str = "day.mp4", frame_filter: str = "<frame_filter></frame_filter>") -> str:
    meta = META.format(source=source, filter=frame_filter)
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{meta}{body}</annotations>'


def box(frame: int, outside: int) -> str:
    sides = 'xtl="1.0" ytl="2.0" xbr="3.0" ybr="4.0"'
    return f'<box frame="{frame}" keyframe="1" outside="{outside}" occluded="0" {sides} z_order="0"></box>'


TRACKS = (
    f'<track id="0" label="open door">{box(3, 0)}{box(9, 1)}{box(20, 0)}{box(24, 0)}{box(30, 1)}</track>'
    f'<track id="1" label="wave" source="manual">{box(36, 0)}{box(37, 0)}{box(38, 0)}{box(39, 0)}</track>'
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with day.mp4, 40 frames at 30 a second, and one of varying rate below it."""
    folder = tmp_path_factory.mktemp("videos")
    draw_plain(folder / "day.mp4", 40)
    (folder / "below").mkdir()
    draw_variable_rate(folder / "below" / "night.mp4", [0.0, 0.1, 0.5, 0.6, 2.0])
    return folder


def test_cvats_tracks_last_while_their_object_is_to_be_seen(videos: Path, tmp_path: Path) -> None:
    table = read_segments(save(tmp_path / "annotations.xml", cvat(TRACKS)), videos)
    found = [(video, label, round(30 * start, 3), round(30 * end, 3)) for video, _, start, end, label in seen(table)]
    assert found == [
        ("day", "open door", 3, 9),
        ("day", "open door", 20, 30),
        ("day", "wave", 36, 40),
    ]
    assert table.videos[0].duration_seconds == pytest.approx(40 / 30)


def test_frames_of_folders_are_counted_by_their_rate(videos: Path, tmp_path: Path) -> None:
    """The frames of day.mp4, extracted into a folder of its name."""
    with open_video(videos / "day.mp4") as reader:
        write_frames(tmp_path / "frames" / "day", reader.frames(range(40)), "{}.jpg")
    file = save(tmp_path / "annotations.xml", cvat(TRACKS))
    found = seen(read_segments(file, tmp_path / "frames", fps=30))
    assert [(video, pytest.approx(start), pytest.approx(end), label) for video, _, start, end, label in found] == [
        (video, start, end, label) for video, _, start, end, label in seen(read_segments(file, videos))
    ]
    with pytest.raises(DataError, match=r"day' is a folder of frames, .* counts its frames: give their rate"):
        read_segments(file, tmp_path / "frames")


def test_cvats_frames_are_shown_when_the_video_shows_them(videos: Path, tmp_path: Path) -> None:
    track = f'<track id="0" label="blink">{box(1, 0)}{box(3, 1)}</track>'
    table = read_segments(save(tmp_path / "a.xml", cvat(track, source="night.mp4")), videos)
    assert seen(table) == [("night", None, pytest.approx(0.1), pytest.approx(0.6), "blink")]


def test_a_video_beside_the_annotations_is_found_too(tmp_path: Path) -> None:
    draw_plain(tmp_path / "day.mp4", 40)
    assert len(seen(read_segments(save(tmp_path / "annotations.xml", cvat(TRACKS))))) == 3


def test_cvats_tags_of_frames_that_follow_each_other_are_one_segment(videos: Path, tmp_path: Path) -> None:
    images = "".join(
        f'<image id="{frame}" name="frame_{frame:06d}" width="64" height="48">'
        + "".join(f'<tag label="{label}" source="manual"></tag>' for label in labels)
        + "</image>"
        for frame, labels in ((2, ["a"]), (4, ["a", "b"]), (6, ["a"]), (10, ["a"]))
    )
    text = cvat(images, frame_filter="<frame_filter>step=2</frame_filter>")
    table = read_segments(save(tmp_path / "annotations.xml", text), videos)
    found = sorted((label, round(30 * start), round(30 * end)) for _, _, start, end, label in seen(table))
    assert found == [("a", 2, 8), ("a", 10, 12), ("b", 4, 6)]


def test_cvats_project_has_a_video_for_each_task(videos: Path, tmp_path: Path) -> None:
    task = "<task><id>{}</id><name>t</name><source>{}</source></task>"
    tasks = task.format(1, "day.mp4") + task.format(2, "night.mp4")
    text = (
        f"<annotations><version>1.1</version><meta><project><id>1</id><tasks>{tasks}</tasks></project></meta>"
        f'<track id="0" label="a" task_id="1" subset="default">{box(0, 0)}{box(3, 1)}</track>'
        f'<track id="1" label="b" task_id="2" subset="default">{box(0, 0)}{box(1, 1)}</track></annotations>'
    )
    assert [entry[0] for entry in seen(read_segments(save(tmp_path / "p.xml", text), videos))] == ["day", "night"]
    lost = text.replace(' task_id="2"', "")
    with pytest.raises(DataError, match=r"p\.xml track 1 does not say of which of 2 tasks it is"):
        read_segments(save(tmp_path / "p.xml", lost), videos)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            cvat(TRACKS, source="gone.mp4"),
            r"of CVAT, counts frames, and only the video 'gone\.mp4' knows",
        ),
        (cvat(TRACKS, source="../../etc/day.mp5"), r"only the video '\.\./\.\./etc/day\.mp5' knows"),
        (
            cvat(TRACKS.replace('frame="30"', 'frame="300"')),
            r"has frames 20 to 299, while 'day\.mp4' has those from 0 to 39",
        ),
        (cvat(TRACKS).replace("1.1<", "2.0<"), r"is CVAT's XML of version '2\.0'; 1\.0 and 1\.1 are read"),
        (cvat(""), r"holds no tracks and no tags: export the task as 'CVAT for video 1\.1'"),
        (
            cvat('<image id="0" name="frame_000000"><box label="a"></box></image>'),
            r"holds shapes on single frames: export the task as 'CVAT for video 1\.1', which has tracks",
        ),
        (
            cvat('<image id="0" name="cat.jpg"></image>'),
            r"image 0 is a single image, 'cat\.jpg'; export a task",
        ),
        (cvat(TRACKS.replace("open door", " ")), r"track 0 has no label; give it one in CVAT"),
        (cvat(TRACKS.replace('frame="3"', 'frame="x"')), r"track 0: frame = 'x' should be a whole number"),
        (
            cvat(TRACKS.replace('frame="3"', f'frame="{"3" * 5000}"')),
            r"track 0: frame = '3{20}\.\.\.' should be a whole",
        ),
        (cvat(TRACKS, source=""), r"track 0: the task names no video")
        if False
        else (cvat(TRACKS)[:-40], "is no whole XML"),
        ("<annotation><folder>VOC</folder></annotation>", r"is XML of <annotation>; what is read is CVAT's export"),
        ("<html><body></body></html>", r"is XML of <html>; what is read is CVAT's export as 'CVAT for video 1\.1'"),
    ],
)
def test_faults_of_cvat(text: str, message: str, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_segments(save(tmp_path / "annotations.xml", text), videos)


LAUGHS = "".join(f'<!ENTITY lol{i} "{f"&lol{i - 1};" * 10 if i else "lol"}">' for i in range(9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"<!DOCTYPE a [{LAUGHS}]><annotations><meta>&lol8;</meta></annotations>", "has a DOCTYPE, which neither CVAT"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>', "has a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><annotations></annotations>', "has a DOCTYPE"),
        ("<annotations>" + "<a>" * 40 + "</a>" * 40 + "</annotations>", "too many elements, or too deep ones"),
        ("<annotations>&nothing;</annotations>", "is no whole XML: undefined entity"),
    ],
)
def test_xml_that_would_harm_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_segments(save(tmp_path / "a.xml", text))


def test_xml_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tada.localization.annotations.cvat_elan._MAX_BYTES", 2**20)
    with pytest.raises(DataError, match=r"a\.xml is larger than 1 MB; export fewer videos at a time"):
        read_segments(save(tmp_path / "a.xml", cvat(" " * 2**20)))
    monkeypatch.setattr("tada.localization.annotations.cvat_elan._MAX_ELEMENTS", 20)
    with pytest.raises(DataError, match=r"too many elements"):
        read_segments(save(tmp_path / "a.xml", cvat(TRACKS * 5)))


# -- ELAN -------------------------------------------------------------------------------------------------------------

ELAN = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2024-01-01T00:00:00+01:00" FORMAT="3.0" VERSION="3.0"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/a/day.wav" MIME_TYPE="audio/x-wav" RELATIVE_MEDIA_URL="./day.wav"/>
<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/films/my%20day.mp4" MIME_TYPE="video/mp4"{origin}/>
</HEADER>
<TIME_ORDER>
<TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="1500"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="2750"/>
<TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="4000"/><TIME_SLOT TIME_SLOT_ID="ts4"/>
<TIME_SLOT TIME_SLOT_ID="ts5" TIME_VALUE="6000"/>
</TIME_ORDER>
<TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="hands">
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
<ANNOTATION_VALUE>wave &amp; nod</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
<ANNOTATION_VALUE>untimed</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
</TIER>
<TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="walk">
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts5">
<ANNOTATION_VALUE></ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
</TIER>
<TIER LINGUISTIC_TYPE_REF="notes" PARENT_REF="hands" TIER_ID="remarks">
<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a4" ANNOTATION_REF="a1">
<ANNOTATION_VALUE>twice</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
</TIER>
<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>
</ANNOTATION_DOCUMENT>"""


def test_elans_annotations_are_segments(tmp_path: Path) -> None:
    table = read_segments(save(tmp_path / "day.eaf", ELAN.format(origin="")))
    assert seen(table) == [("my day", None, 1.5, 2.75, "wave & nod"), ("my day", None, 4.0, 6.0, "walk")]
    assert table.notes == (
        "day.eaf: the values of the tiers hands, walk are classes alike",
        "day.eaf: 1 annotation of those that refer to others: left out",
        "day.eaf: 1 annotation without times of their own: left out",
    )
    later = read_segments(save(tmp_path / "day.eaf", ELAN.format(origin=' TIME_ORIGIN="500"')))
    assert seen(later)[0][2:4] == (2.0, 3.25)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('FORMAT="3.0"', 'FORMAT="4.0"', r"is of ELAN's format '4\.0'; 2\.x and 3\.x are read"),
        ('TIME_UNITS="milliseconds"', 'TIME_UNITS="PAL-frames"', r"counts time in PAL-frames, not in milliseconds"),
        ("MEDIA_DESCRIPTOR", "MEDIUM", r"names no video \(MEDIA_DESCRIPTOR\): link it in ELAN"),
        ('"1500"', '"1.5"', r"the time '1\.5' should be whole milliseconds"),
        ('"1500"', f'"{"9" * 5000}"', r"the time '9{20}\.\.\.' should be whole milliseconds"),
    ],
)
def test_faults_of_elan(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_segments(save(tmp_path / "day.eaf", ELAN.format(origin="").replace(old, new)))


# -- Label Studio -----------------------------------------------------------------------------------------------------


def task(number: int, video: str, *regions: dict[str, Any], **annotation: Any) -> dict[str, Any]:
    result = [{"id": f"r{i}", "from_name": "l", "to_name": "video"} | region for i, region in enumerate(regions)]
    return {
        "id": number,
        "data": {"video": video, "comment": "no video"},
        "annotations": [{"id": 1, "was_cancelled": False, "ground_truth": False, "result": result} | annotation],
        "predictions": [],
    }


TIMELINE = {"type": "timelinelabels", "value": {"ranges": [{"start": 1, "end": 3}], "timelinelabels": ["wave"]}}
SPOKEN = {"type": "labels", "value": {"start": 0.25, "end": 1.5, "labels": ["talk", "loud"], "channel": 0}}
SEQUENCE = [
    {"frame": 5, "enabled": True, "x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0, "time": 0.2},
    {"frame": 15, "enabled": False, "x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0, "time": 0.6},
    {"frame": 30, "enabled": True, "x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0, "time": 1.2},
]
TRACKED = {
    "type": "videorectangle",
    "value": {"framesCount": 50, "duration": 2.0, "sequence": SEQUENCE, "labels": ["man"]},
}


def test_label_studios_regions_are_segments(videos: Path, tmp_path: Path) -> None:
    tasks = [
        task(1, "/data/upload/3/0a1b2c3d-day.mp4", TIMELINE),
        task(2, "/data/local-files/?d=films/evening%20walk.mp4", SPOKEN),
        task(3, "https://videos.example.org/x/morning.mp4?token=1", TRACKED),
        task(4, "/data/upload/3/0a1b2c3d-night.mp4", SPOKEN, was_cancelled=True),
    ]
    table = read_segments(save(tmp_path / "project.json", tasks), videos)
    assert seen(table) == [
        ("day", None, 0.0, pytest.approx(0.1), "wave"),
        ("evening walk", None, 0.25, 1.5, "talk"),
        ("evening walk", None, 0.25, 1.5, "loud"),
        ("morning", None, pytest.approx(4 / 25), pytest.approx(15 / 25), "man"),
        ("morning", None, pytest.approx(29 / 25), 2.0, "man"),
    ]


def test_of_several_annotations_the_ground_truth_counts(tmp_path: Path) -> None:
    both = task(1, "a.mp4", SPOKEN)
    other = task(1, "a.mp4", SPOKEN | {"value": {"start": 5, "end": 6, "labels": ["other"]}})["annotations"][0]
    both["annotations"].append(other)
    table = read_segments(save(tmp_path / "p.json", [both]))
    assert [entry[-1] for entry in seen(table)] == ["other"]
    assert table.notes == ("p.json task 1: of 2 annotations one counts (the ground truth, or the last)",)
    both["annotations"][0]["ground_truth"] = True
    assert len(seen(read_segments(save(tmp_path / "p.json", [both])))) == 2


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            [{"video": "a.mp4", "l": [{"start": 1, "end": 2, "labels": ["x"]}]}],
            "entry 1 is no task .* not as JSON-MIN",
        ),
        ([task(1, "a.txt", SPOKEN)], r"task 1: its data \('comment', 'video'\) name 0 videos; one"),
        ([task(1, "a.mp4", {"value": {"ranges": [{"start": 1, "end": 2}]}})], r"of Label Studio, counts frames"),
        ([task(1, "day.mp4", {"value": {"ranges": [{"start": 1}]}})], r"region r0: KeyError\('end'\); give it times"),
        (
            [task(1, "day.mp4", {"value": TIMELINE["value"] | {"ranges": [{"start": 30, "end": 41}]}})],
            r"frames 29 to 40",
        ),
        ([task(1, "a.mp4", {"value": {"start": "x", "end": 2, "labels": ["a"]}})], r"region r0: ValueError"),
        ([task(1, "a.mp4", {"value": {"start": 1, "end": 2, "labels": "ab"}})], r"region r0: its labels are no list"),
        ([task(1, "a.mp4", {"value": TRACKED["value"] | {"duration": 0}})], r"region r0: ZeroDivisionError"),
        ([task(1, "a.mp4") | {"annotations": 5}], r"entry 1 is no task of Label Studio"),
    ],
)
def test_faults_of_label_studio(tasks: list[Any], message: str, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_segments(save(tmp_path / "project.json", tasks), videos)


# -- VIA --------------------------------------------------------------------------------------------------------------


def via(**changes: Any) -> dict[str, Any]:
    project: dict[str, Any] = {
        "project": {
            "pid": "__VIA_PROJECT_ID__",
            "rev": "1",
            "pname": "x",
            "data_format_version": "3.1.2",
            "vid_list": ["1"],
        },
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}},
        "attribute": {
            "1": {"aname": "action", "anchor_id": "FILE1_Z2_XY0", "type": 4, "options": {"0": "wave", "1": "nod"}},
            "2": {"aname": "who", "anchor_id": "FILE1_Z2_XY0", "type": 1, "options": {}},
        },
        "file": {"7": {"fid": "7", "fname": "day.mp4", "type": 4, "loc": 1, "src": ""}},
        "view": {"1": {"fid_list": ["7"]}},
        "metadata": {
            "1_a": {"vid": "1", "flg": 0, "z": [1.25, 2.5], "xy": [], "av": {"1": "0"}},
            "1_b": {"vid": "1", "flg": 0, "z": [3.0, 4.0], "xy": [], "av": {"1": "1", "2": ""}},
            "1_c": {"vid": "1", "flg": 0, "z": [3.5], "xy": [2, 10, 10, 5, 5], "av": {"2": "me"}},
        },
    }
    return project | changes


def test_vias_temporal_segments(tmp_path: Path) -> None:
    found = seen(read_segments(save(tmp_path / "via.json", via())))
    assert found == [("day", None, 1.25, 2.5, "wave"), ("day", None, 3.0, 4.0, "nod")]
    texts = {"1": {"vid": "1", "flg": 0, "z": [1, 2], "xy": [], "av": {"2": "somebody"}}}
    assert seen(read_segments(save(tmp_path / "via.json", via(metadata=texts))))[0][-1] == "somebody"
    boxes = {"1": {"aname": "action", "type": 2, "options": {"0": "wave", "1": "nod"}}}
    both = {"1": {"vid": "1", "flg": 0, "z": [1, 2], "xy": [], "av": {"1": "0,1"}}}
    found = seen(read_segments(save(tmp_path / "via.json", via(metadata=both, attribute=boxes))))
    assert sorted(entry[-1] for entry in found) == ["nod", "wave"]


def segment(**av: str) -> dict[str, Any]:
    return {"1_a": {"vid": "1", "flg": 0, "z": [1, 2], "xy": [], "av": {key[1:]: value for key, value in av.items()}}}


@pytest.mark.parametrize(
    ("project", "message"),
    [
        (via(metadata=segment(_1="0", _2="me")), r"segments have several attributes \('action', 'who'\); keep the one"),
        (via(metadata=segment()), r"segment 1_a has no label; give it one in VIA"),
        (via(project={"vid_list": [], "data_format_version": "4.0.0"}), r"is of VIA's format 4\.0\.0; 3\.x is read"),
        (via(view={}), r"is no whole project of VIA 3 \(KeyError\('1'\)\)"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, r"is of VIA 2 or older, which labels images"),
        (
            "# CSV generated using VGG Image Annotator (VIA)\n# x\n",
            r"is a CSV that VIA exported; save the project",
        ),
    ],
)
def test_faults_of_via(project: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_segments(save(tmp_path / ("a.csv" if isinstance(project, str) else "a.json"), project))


# -- BORIS ------------------------------------------------------------------------------------------------------------


def boris(*events: list[Any], files: tuple[str, ...] = ("/films/day.mp4",), **changes: Any) -> dict[str, Any]:
    observation = {
        "file": {"1": list(files), "2": []},
        "type": "MEDIA",
        "date": "2024-01-01T10:00:00",
        "time offset": 0.0,
        "events": list(events),
        "media_info": {"length": {file: 10.0 for file in files}, "fps": {file: 25.0 for file in files}},
    }
    kinds = {"walk": "State event", "look": "State event", "peck": "Point event"}
    return {
        "time_format": "hh:mm:ss",
        "project_name": "x",
        "project_format_version": "7.0",
        "behaviors_conf": {
            str(i): {"code": code, "type": kind, "key": "a"} for i, (code, kind) in enumerate(kinds.items())
        },
        "observations": {"first": observation | changes},
    }


EVENTS = (
    [1.5, "hen", "walk", "", "", 37],
    [2.0, "hen", "peck", "", "", 50],
    [2.25, "cock", "walk", "", ""],
    [4.0, "hen", "walk", "", "", 100],
    [3.0, "hen", "look", "left", "", 75],
    [3.5, "cock", "walk", "", ""],
    [5.0, "hen", "look", "left", ""],
)


@pytest.mark.parametrize("name", ["project.boris", "project.json"])
def test_boris_states_last_from_start_to_stop(name: str, tmp_path: Path) -> None:
    table = read_segments(save(tmp_path / name, boris(*EVENTS)))
    assert seen(table) == [
        ("day", None, 1.5, 4.0, "walk"),
        ("day", None, 2.25, 3.5, "walk"),
        ("day", None, 3.0, 5.0, "look"),
    ]
    assert table.videos[0].duration_seconds == 10.0
    assert table.notes == (f"{name}: 1 point events, which have no length: left out",)


def test_boris_videos_one_after_the_other(tmp_path: Path) -> None:
    events = (
        [1.0, "", "walk", "", ""],
        [2.0, "", "walk", "", ""],
        [12.0, "", "look", "", ""],
        [13.5, "", "look", "", ""],
    )
    table = read_segments(save(tmp_path / "p.boris", boris(*events, files=("a.mp4", "b.mp4"))))
    assert seen(table) == [("a", None, 1.0, 2.0, "walk"), ("b", None, 2.0, 3.5, "look")]


HEADER = (
    "Observation id\tObservation date\tDescription\tObservation duration\tObservation type\tSource\tTime offset (s)\t"
    "Media duration (s)\tFPS (frame/s)\tSubject\tBehavior\tBehavioral category\tBehavior type\tStart (s)\tStop (s)\t"
    "Duration (s)\tMedia file name\tImage index start\tImage index stop\tComment start\tComment stop\n"
)


def event(
    behavior: str, kind: str, start: str, stop: str, source: str = "player #1:day.mp4", offset: str = "0.0"
) -> str:
    cells = ["first", "2024-01-01", "", "10", "Media file(s)", source, offset, "10.0", "25", "hen", behavior, ""]
    return "\t".join([*cells, kind, start, stop, "1", "day.mp4", "1", "2", "", ""]) + "\n"


@pytest.mark.parametrize("mark", ["\t", ","])
def test_boris_aggregated_events(mark: str, tmp_path: Path) -> None:
    text = HEADER + event("walk", "STATE", "1.5", "4.0") + event("peck", "POINT", "2.0", "2.0")
    text += event("look", "STATE", "3", "5.25", source="player #1:day.mp4|player #2:other.mp4")
    file = save(tmp_path / "events.tsv", text.replace("\t", mark))
    table = read_segments(file)
    assert seen(table) == [("day", None, 1.5, 4.0, "walk"), ("day", None, 3.0, 5.25, "look")]
    assert table.notes == ("events.tsv: 1 point events, which have no length: left out",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (boris(EVENTS[0]), r"observation 'first': the state 'walk' starts at 1\.5 s and never stops: pair it in BORIS"),
        (boris(*EVENTS, **{"time offset": 5.0}), r"it has a time offset; set it to 0 in BORIS"),
        (boris(*EVENTS, files=()), r"observation 'first' names no video"),
        (boris(["x", "", "walk", "", ""]), r"is no whole project of BORIS \(ValueError"),
        (boris() | {"observations": {"x": {"type": "LIVE", "events": []}}}, r"has no segments: nothing to learn from"),
        (
            HEADER + event("walk", "STATE", "1", "2", source="player #1:a.mp4;b.mp4"),
            r"row 2: .* several videos, one after",
        ),
        (HEADER + event("walk", "STATE", "1", "2", offset="5.0"), r"row 2: a time offset of 5\.0 s; set it to 0"),
        (HEADER + event("walk", "STATE", "1", "NA"), r"row 2: end = 'NA' should be a time"),
        (
            "Observation id\tSubject\tBehavior\tBehavior type\tTime\nx\ta\twalk\tSTART\t1\n",
            r"BORIS's tabular events; export",
        ),
    ],
)
def test_faults_of_boris(content: object, message: str, tmp_path: Path) -> None:
    name = "p.tsv" if isinstance(content, str) else "p.boris"
    with pytest.raises(DataError, match=message):
        read_segments(save(tmp_path / name, content))


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_several_files_is_one_table(videos: Path, tmp_path: Path) -> None:
    save(tmp_path / "elan" / "one.eaf", ELAN.format(origin=""))
    save(tmp_path / "elan" / "two.eaf", ELAN.format(origin="").replace("my%20day", "other"))
    save(tmp_path / "via.json", via())
    save(tmp_path / "readme.txt", "not read")
    save(tmp_path / "other.json", {"settings": {}})
    table = read_segments(tmp_path, videos)
    assert {video.name for video in table.videos} == {"my day", "other", "day"}
    assert table.num_segments == 6
    assert table.heads[0].labels == ("nod", "walk", "wave", "wave & nod")


def test_a_folder_without_any_is_read_as_before(tmp_path: Path) -> None:
    save(tmp_path / "x.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match=r"holds no annotations that are read from a folder"):
        read_segments(tmp_path)


def test_bytes_of_any_kind_give_a_line(tmp_path: Path) -> None:
    """Truncated and changed exports are refused in our words, or read: nothing else."""
    rng = np.random.default_rng(0)
    sources: dict[str, object] = {
        "a.xml": cvat(TRACKS),
        "a.eaf": ELAN.format(origin=""),
        "a.json": [task(1, "a.mp4", SPOKEN, TRACKED)],
        "b.json": via(),
        "a.boris": boris(*EVENTS),
        "a.tsv": HEADER + event("walk", "STATE", "1.5", "4.0"),
    }
    draw_plain(tmp_path / "day.mp4", 40)
    for name, content in sources.items():
        whole = save(tmp_path / name, content).read_bytes()
        for _ in range(60):
            changed = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
            for place in rng.integers(0, len(changed), int(rng.integers(0, 4))):
                changed[place] = int(rng.integers(0, 256))
            (tmp_path / name).write_bytes(changed)
            message = ""
            try:
                read_segments(tmp_path / name)
            except DataError as error:
                message = str(error)
            assert "\n" not in message
