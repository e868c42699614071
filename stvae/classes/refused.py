"""Autoencoder classes of diffusers whose latents cannot be stored, each with the reason that the user sees."""

from __future__ import annotations

_SOUND = "it encodes sound, not pictures or video"
_VOCODER = "it turns spectrograms into sound, and encodes nothing"

REFUSED: dict[str, str] = {
    "AutoencoderRAE": (
        "it resizes every picture to one square size, and normalizes pixels and latents itself, so no bucket fits it and "
        "both would be normalized twice"
    ),
    "ConsistencyDecoderVAE": (
        "it decodes with random noise, so latents cannot be checked; its encoder is that of Stable Diffusion's "
        "AutoencoderKL, which gives the same latents: use that checkpoint"
    ),
    "LTX2VideoDiffusionDecoderModel": (
        "it only decodes; give the AutoencoderKLLTX2Video of the same model, which makes the latents"
    ),
    "VQModel": (
        "it decodes entries of a codebook; its models disagree about whether they train on latents before or after the "
        "choice of an entry, or on the numbers of the entries"
    ),
    "AutoencoderKLKVAEAudio": _SOUND,
    "AutoencoderKLLTX2Audio": _SOUND,
    "AutoencoderKLMiniMaxH3Audio": _SOUND,
    "AutoencoderOobleck": _SOUND,
    "AutoencoderSAME": _SOUND,
    "Cosmos3AVAEAudioTokenizer": _SOUND,
    "LongCatAudioDiTVae": _SOUND,
    "MMAudioVAE": "it encodes spectrograms of sound, not pictures or video",
    "MMAudioVocoder": _VOCODER,
    "MiniMaxMusic3Vocoder": _VOCODER,
    "RFD4ProteinaAutoencoder": "it encodes proteins, not pictures or video",
}
