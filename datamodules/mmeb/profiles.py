"""How the tasks are shown to a model; a score is worth comparing only with scores of the same profile.

The instructions of the video and page tasks are not in the files of MMEB-V2 but in the programs that evaluate it. Ours (``tasks.tsv``) are short
and of our own wording. Published scores used the wording of VLM2Vec's or Qwen's evaluation code: to compare with them, give it in a file,
``evaluation.instructions`` (see `datamodules.mmeb.instructions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Profile:
    """One way to show inputs. None always means: as the run's own settings say.

    Attributes:
        name: What a report calls it.
        layout: Where the instruction stands: in the user's turn, in the system turn, or (bare) without a chat template.
        default_instruction: Instruction of inputs that bring none.
        num_frames: Frames taken from a video.
        clip_frames: Frames taken from a candidate clip of QVHighlight and Charades-STA.
        min_pixels: Smaller pictures are enlarged to this area.
        max_pixels: Larger pictures are shrunk to this area.
        max_video_pixels: Largest area of all frames of a video together.
        padding_side: Where prompts are padded.
        max_prompt_tokens: Longest prompt.
        candidate_instructions: Whether candidates keep their instruction.
        first_caption_wins: A text's candidate pictures (EDIS and WebQA give them captions) are one candidate for each picture, with the caption
            that was met first, as published scores have it; how many captions are lost is counted. Otherwise they are one for each picture and
            caption, so that none is lost.
    """

    name: str
    layout: Literal["user", "system", "bare"] | None = None
    default_instruction: str | None = None
    num_frames: int | None = None
    clip_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_video_pixels: int | None = None
    padding_side: Literal["left", "right"] | None = None
    max_prompt_tokens: int | None = None
    candidate_instructions: bool = True
    first_caption_wins: bool = False


PROFILES: dict[str, Profile] = {
    "trained": Profile(name="trained"),
    "vlm2vec": Profile(name="vlm2vec", layout="bare", default_instruction="", num_frames=8, clip_frames=8, first_caption_wins=True),
    "qwen": Profile(
        name="qwen",
        layout="system",
        default_instruction="Represent the user's input.",
        num_frames=64,
        clip_frames=8,
        min_pixels=4_096,
        max_pixels=1_843_200,
        max_video_pixels=7_864_320,
        padding_side="right",
        max_prompt_tokens=8_192,
        candidate_instructions=False,
        first_caption_wins=True,
    ),
}
"""trained: as in training, with the task's words on both sides. vlm2vec: as VLM2Vec-V2 is evaluated. qwen: as Qwen3-VL-Embedding is evaluated."""
