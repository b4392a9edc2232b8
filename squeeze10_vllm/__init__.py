"""The vLLM plugin: serves checkpoints whose quant_method is squeeze10."""

import logging


def register() -> None:
    """Tell vLLM of squeeze10; vLLM calls this in every one of its processes.

    It never stands in the way of other models: where vLLM lacks what the plugin builds on, it logs and returns.
    """
    try:
        from vllm.model_executor.layers.quantization import register_quantization_config

        from squeeze10_vllm.config import Squeeze10Config
    except ImportError as error:
        from squeeze10_vllm.versions import supported_versions, vllm_version

        logging.getLogger("vllm.squeeze10").error(
            "squeeze10 is not available: it serves with vLLM %s, and vLLM %s lacks what it needs (%s). "
            "Other models are not affected.",
            supported_versions(),
            vllm_version(),
            error,
        )
        return
    register_quantization_config("squeeze10")(Squeeze10Config)
