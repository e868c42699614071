"""The table of families. Each row follows the family's pipeline in diffusers, or its own code where there is none."""

from __future__ import annotations

from dataclasses import replace

from pipeline.output.layers.text_card import Null
from pipeline.text.encoders import templates
from pipeline.text.encoders.family import Branch, Family

EMPTY = Null(kind="text", text="", note="the embedding of the empty caption")
NO_TEXT = Null(kind="text", text="", note="the family has no guidance; the empty caption has no tokens")
T5, CLIP, QWEN_25 = ("t5",), ("clip", "clip_text_model"), ("qwen2_5_vl", "qwen2_5_vl_text")
POOLED_CLIP = Branch(array="pooled", models=CLIP, max_tokens=77, taken="pooled")

OPEN_SORA = Family(
    name="open-sora-1.2",
    branches=(Branch(models=T5, max_tokens=300, fixed_length=True),),
    null=Null(
        kind="checkpoint",
        note="y_embedder.y_embedding [300,4096] in the transformer's checkpoint; the mask of the caption is kept for it",
    ),
)
OPEN_SORA_2 = Family(
    name="open-sora-2",
    branches=(
        Branch(models=T5, max_tokens=512, sees_padding=True, trimmed=False, fixed_length=True, masked=False),
        POOLED_CLIP,
    ),
    null=EMPTY,
)
COGVIDEOX = Family(
    name="cogvideox",
    branches=(Branch(models=T5, max_tokens=226, sees_padding=True, trimmed=False, fixed_length=True, masked=False),),
    pipelines=(
        "CogVideoXPipeline",
        "CogVideoXImageToVideoPipeline",
        "CogVideoXVideoToVideoPipeline",
        "CogVideoXFunControlPipeline",
        "ConsisIDPipeline",
    ),
    null=EMPTY,
)
MOCHI = Family(
    name="mochi",
    branches=(Branch(models=T5, max_tokens=256),),
    pipelines=("MochiPipeline",),
    zero_empty=True,
    null=Null(kind="text", text="", note="no tokens and an empty mask"),
)
LTX_VIDEO = Family(
    name="ltx-video",
    branches=(Branch(models=T5, max_tokens=128, sees_padding=True),),
    pipelines=("LTXPipeline", "LTXImageToVideoPipeline", "LTXI2VLongMultiPromptPipeline"),
    null=EMPTY,
)
LTX_VIDEO_CONDITION = replace(
    LTX_VIDEO,
    name="ltx-video-0.9.5",
    branches=(Branch(models=T5, max_tokens=256),),
    pipelines=("LTXConditionPipeline",),
)
ALLEGRO = Family(
    name="allegro",
    branches=(Branch(models=T5, max_tokens=512),),
    pipelines=("AllegroPipeline",),
    cleaning="lowercase",
    null=EMPTY,
)
COSMOS = Family(
    name="cosmos-predict",
    branches=(Branch(models=T5, max_tokens=512, fixed_length=True, masked=False),),
    pipelines=(
        "CosmosTextToWorldPipeline",
        "CosmosVideoToWorldPipeline",
        "Cosmos2TextToImagePipeline",
        "Cosmos2VideoToWorldPipeline",
    ),
    null=EMPTY,
)
WAN = Family(
    name="wan",
    branches=(Branch(models=("umt5",), max_tokens=512, fixed_length=True, masked=False),),
    pipelines=(
        "WanPipeline",
        "WanImageToVideoPipeline",
        "WanVideoToVideoPipeline",
        "WanVACEPipeline",
        "WanAnimatePipeline",
        "SkyReelsV2Pipeline",
        "SkyReelsV2ImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        "LucyEditPipeline",
        "HeliosPipeline",
        "HeliosPyramidPipeline",
        "ChronoEditPipeline",
        "AnyFlowPipeline",
        "AnyFlowFARPipeline",
    ),
    cleaning="wan",
    null=EMPTY,
)
HUNYUAN_VIDEO = Family(
    name="hunyuan-video",
    branches=(
        Branch(
            models=("llama",),
            prompt="template",
            template=templates.HUNYUAN_VIDEO,
            max_tokens=256,
            crop=95,
            taken="state",
            state=-3,
        ),
        POOLED_CLIP,
    ),
    pipelines=("HunyuanVideoPipeline", "HunyuanVideoFramepackPipeline", "HunyuanSkyreelsImageToVideoPipeline"),
    null=EMPTY,
)
HUNYUAN_VIDEO_15 = Family(
    name="hunyuan-video-1.5",
    branches=(
        Branch(
            models=QWEN_25,
            prompt="chat",
            template=templates.HUNYUAN_VIDEO_15_SYSTEM,
            answer_start=True,
            max_tokens=1000,
            crop=108,
            taken="state",
            state=-3,
        ),
        Branch(array="glyphs", models=T5, prompt="glyphs", max_tokens=256),
    ),
    pipelines=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
    null=EMPTY,
)
KANDINSKY_5 = Family(
    name="kandinsky-5",
    branches=(
        Branch(
            models=QWEN_25,
            prompt="template",
            template=templates.KANDINSKY_5,
            max_tokens=512,
            crop=128,
            cut_as_text=True,
            taken="state",
            state=-1,
        ),
        POOLED_CLIP,
    ),
    pipelines=("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline"),
    cleaning="wan",
    null=EMPTY,
)
SANA_VIDEO = Family(
    name="sana-video",
    branches=(Branch(models=("gemma2",), prompt="instruction", template=templates.SANA_VIDEO, max_tokens=300),),
    pipelines=("SanaVideoPipeline", "SanaImageToVideoPipeline"),
    cleaning="lowercase",
    null=Null(kind="row", note="the empty caption without the instruction"),
)
EASYANIMATE = Family(
    name="easyanimate-5.1",
    branches=(
        Branch(
            models=("qwen2_vl", "qwen2_vl_text"),
            prompt="chat",
            answer_start=True,
            typed_content=True,
            max_tokens=256,
            taken="state",
            state=-2,
            trimmed=False,
            fixed_length=True,
            masked=False,
        ),
    ),
    pipelines=("EasyAnimatePipeline", "EasyAnimateControlPipeline", "EasyAnimateInpaintPipeline"),
    null=EMPTY,
)
LTX_2 = Family(
    name="ltx-2",
    branches=(
        Branch(
            models=("gemma3", "gemma3_text", "gemma4_unified", "gemma4_unified_text"),
            max_tokens=1024,
            taken="stack",
            fixed_length=True,
            padding_side="left",
        ),
    ),
    pipelines=("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline", "LTX2InContextPipeline"),
    cleaning="strip",
    needs_projection=True,
    large_mb=385.4,
    null=EMPTY,
)
MINIMAX_H3 = Family(
    name="minimax-h3",
    branches=(
        Branch(models=("qwen3_vl", "qwen3_vl_text"), special_tokens=False, max_tokens=8192, taken="state", state=50),
    ),
    pipelines=("MiniMaxH3ModularPipeline",),
    null=NO_TEXT,
    token_tag=1,
)
COSMOS_25 = Family(
    name="cosmos-predict-2.5",
    branches=(
        Branch(
            models=QWEN_25,
            prompt="chat",
            template=templates.COSMOS_25_SYSTEM,
            typed_content=True,
            max_tokens=512,
            taken="standardized",
            sees_padding=True,
            trimmed=False,
            fixed_length=True,
            masked=False,
        ),
    ),
    pipelines=("Cosmos2_5_PredictBasePipeline", "Cosmos2_5_TransferPipeline"),
    null=Null(kind="text", text=templates.COSMOS_25_NEGATIVE, note="the negative prompt of its pipeline"),
    large_mb=102.8,
)
CLIP_POOLED = Family(name="clip", branches=(POOLED_CLIP,), null=EMPTY)

FAMILIES = {
    family.name: family
    for family in (
        OPEN_SORA,
        OPEN_SORA_2,
        COGVIDEOX,
        MOCHI,
        LTX_VIDEO,
        LTX_VIDEO_CONDITION,
        ALLEGRO,
        COSMOS,
        WAN,
        HUNYUAN_VIDEO,
        HUNYUAN_VIDEO_15,
        KANDINSKY_5,
        SANA_VIDEO,
        EASYANIMATE,
        LTX_2,
        MINIMAX_H3,
        COSMOS_25,
        CLIP_POOLED,
    )
}
