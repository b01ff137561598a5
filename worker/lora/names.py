"""What others call an adapted layer. Our own name is its module path, as diffusers and transformers spell it.

kohya    `lora_unet_input_blocks_4_1_proj_in`: SGM's numbering, since sd-scripts trains SGM's U-Net, and _ for each
         dot; `lora_te1_text_model_encoder_layers_0_mlp_fc1` and `lora_te2_…` for the text encoders
PEFT     `unet.down_blocks.1.attentions.0.proj_in`, `text_encoder.text_model.encoder.layers.0.mlp.fc1`

Source: kohya-ss/sd-scripts v0.10.1 (commit 48d368fa), networks/lora.py; tests/contracts/kohya_names.json has all names.
"""

from worker.model.single_file import unet_name

_TEXT_ENCODERS = {"text_encoder.": "lora_te1_", "text_encoder_2.": "lora_te2_"}


def kohya_name(path: str) -> str:
    """The name that sd-scripts gives a module.

    Raises:
        ValueError: SDXL has no such module.
    """
    for start, prefix in _TEXT_ENCODERS.items():
        if path.startswith(start):
            return prefix + path.removeprefix(start).replace(".", "_")
    return "lora_unet_" + unet_name(path).replace(".", "_")


def kohya_diffusers_name(path: str) -> str:
    """The name that OneTrainer's older files and files converted by diffusers give it: kohya's prefix, our path."""
    if path.startswith(tuple(_TEXT_ENCODERS)):
        return kohya_name(path)
    return "lora_unet_" + path.replace(".", "_")


def peft_name(path: str) -> str:
    """The name that diffusers' pipelines take."""
    return path if path.startswith(tuple(_TEXT_ENCODERS)) else f"unet.{path}"
