"""Texts around captions that models were trained with, letter by letter, and the negative prompt of one of them."""

from __future__ import annotations

HUNYUAN_VIDEO = (
    "<|start_header_id|>system<|end_header_id|>\n"
    "\n"
    "Describe the video by detailing the following aspects: 1. The main content and theme of the video.2. "
    "The color, shape, size, texture, quantity, text, and spatial relationships of the objects.3. Actions, "
    "events, behaviors temporal relationships, physical movement changes of the objects.4. background "
    "environment, light, style and atmosphere.5. camera angles, movements, and transitions used in the "
    "video:<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
    "\n"
    "{}<|eot_id|>"
)
"""HunyuanVideo: what LLaMA reads. Its first 95 tokens are cut off."""
HUNYUAN_VIDEO_15_SYSTEM = (
    "You are a helpful assistant. Describe the video by detailing the following aspects:         1. The "
    "main content and theme of the video.         2. The color, shape, size, texture, quantity, text, and "
    "spatial relationships of the objects.         3. Actions, events, behaviors temporal relationships, "
    "physical movement changes of the objects.         4. background environment, light, style and "
    "atmosphere.         5. camera angles, movements, and transitions used in the video."
)
"""HunyuanVideo 1.5: the system message of the chat. The first 108 tokens of the chat are cut off."""
KANDINSKY_5 = (
    "<|im_start|>system\n"
    "You are a prompt engineer. Describe the video in detail.\n"
    "Describe how the camera moves or shakes, describe the zoom and view angle, whether it follows the "
    "objects.\n"
    "Describe the location of the video, main characters or objects and their action.\n"
    "Describe the dynamism of the video and presented actions.\n"
    "Name the visual style of the video: whether it is a professional footage, user generated content, "
    "some kind of animation, video game or scren content.\n"
    "Describe the visual effects, postprocessing and transitions if they are presented in the video.\n"
    "Pay attention to the order of key actions shown in the scene.<|im_end|>\n"
    "<|im_start|>user\n"
    "{}<|im_end|>"
)
"""Kandinsky 5: what Qwen2.5-VL reads. Its first 128 tokens are cut off."""
SANA_VIDEO = (
    "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions "
    "suitable for video generation. Evaluate the level of detail in the user prompt:\n"
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, motion, "
    "and temporal relationships to create vivid and dynamic scenes.\n"
    "- If the prompt is already detailed, refine and enhance the existing details slightly without "
    "overcomplicating.\n"
    "Here are examples of how to transform or refine prompts:\n"
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat slowly settling into a curled "
    "position, peacefully falling asleep on a warm sunny windowsill, with gentle sunlight filtering "
    "through surrounding pots of blooming red flowers.\n"
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring "
    "glowing street lamps gradually lighting up, a diverse crowd of people in colorful clothing walking "
    "past, and a double-decker bus smoothly passing by towering glass skyscrapers.\n"
    "Please generate only the enhanced description for the prompt below and avoid including any additional "
    "commentary or evaluations:\n"
    "User Prompt: "
)
"""SANA-Video: the instruction before every caption."""
COSMOS_25_SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."
"""Cosmos-Predict 2.5: the system message of the chat."""
COSMOS_25_NEGATIVE = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, "
    "over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, "
    "underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, jerky "
    "movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special "
    "effects, fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and "
    "flickering. Overall, the video is of poor quality."
)
"""Cosmos-Predict 2.5: the prompt that stands for no caption."""
