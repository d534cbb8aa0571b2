"""Headers and rows of published lists."""

from __future__ import annotations

KINETICS = "label,youtube_id,time_start,time_end,split\n"


EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


EPIC_ROW = "{id},P01,P01_01,00:00:00.100,{start},{stop},8,30,{verb} {noun},{verb},{v},{noun},{n},\"['{noun}']\",[{n}]\n"
