"""Names and shapes of a LLaMA-family model, from its config.json alone."""

from dataclasses import dataclass
from typing import Any, Final

from squeeze10_kernels.errors import BadInput

ARCHITECTURES: Final = ("LlamaForCausalLM",)

INPUT_GROUPS: Final = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Linears of a decoder layer by the input they read: one choice of salient channels and channel scales each."""

MIN_CHUNK: Final = 512
"""With fewer channels a chunk's rounding to 8 takes the salient ratio of real widths out of 0.195 to 0.205."""

MAX_LAYERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The sizes that decide every tensor's shape."""

    num_layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name inside a decoder layer to `(N, K)`, in the order of `INPUT_GROUPS`."""
        heads, kv_heads = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (heads, self.hidden),
            "self_attn.k_proj": (kv_heads, self.hidden),
            "self_attn.v_proj": (kv_heads, self.hidden),
            "self_attn.o_proj": (self.hidden, heads),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def has_bias(self, linear: str) -> bool:
        """Whether the linear of this name inside a decoder layer has a bias."""
        return self.attention_bias if linear.startswith("self_attn.") else self.mlp_bias

    def input_widths(self) -> set[int]:
        """The distinct K of the decoder linears."""
        return {K for _, K in self.linears().values()}

    def tables(self, parts: int = 1) -> dict[str, tuple[int, int]]:
        """Name to `(vocabulary, parts * hidden)` of the embeddings and an untied lm_head; none without parts."""
        names = ("model.embed_tokens",) if self.tied else ("model.embed_tokens", "lm_head")
        return dict.fromkeys(names if parts else (), (self.vocab, parts * self.hidden))

    def dense_tensors(self, table_parts: int = 0) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor that is stored as it is, biases included."""
        shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (self.hidden,)}
        if not table_parts:
            shapes |= {f"{name}.weight": size for name, size in self.tables().items()}
        for index in range(self.num_layers):
            shapes[f"{layer_prefix(index)}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{layer_prefix(index)}.post_attention_layernorm.weight"] = (self.hidden,)
            for linear, (N, _) in self.linears().items():
                if self.has_bias(linear):
                    shapes[f"{layer_prefix(index)}.{linear}.bias"] = (N,)
        return shapes

    def chunks(self) -> int:
        """Chunks for tensor parallelism: the largest of 8, 4, 2, 1 that divides the heads and every input evenly.

        Every chunk holds a multiple of 8 channels and at least `MIN_CHUNK`.
        """
        for count in (8, 4, 2):
            fits = all(K % (8 * count) == 0 and K // count >= MIN_CHUNK for K in self.input_widths())
            if fits and self.heads % count == 0:
                return count
        return 1


def layer_prefix(index: int) -> str:
    """Name of decoder layer `index`, as checkpoints spell it."""
    return f"model.layers.{index}"


def shape_from_config(config: dict[str, Any]) -> LlamaShape:
    """Read a config.json; `BadInput` if it is no LLaMA-family model or a size is missing or impossible."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or architectures[0] not in ARCHITECTURES:
        raise BadInput(
            f"config.json: architectures must be one of {', '.join(ARCHITECTURES)}; got {architectures!r}. "
            "Other model families are not supported."
        )
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    num_layers = positive(config, "num_hidden_layers")
    if num_layers > MAX_LAYERS:
        raise BadInput(f"config.json: num_hidden_layers must be at most {MAX_LAYERS}; got {num_layers}.")
    return LlamaShape(
        num_layers=num_layers,
        hidden=hidden,
        intermediate=positive(config, "intermediate_size"),
        heads=heads,
        kv_heads=positive(config, "num_key_value_heads", heads),
        head_dim=positive(config, "head_dim", hidden // heads),
        vocab=positive(config, "vocab_size"),
        tied=boolean(config, "tie_word_embeddings"),
        attention_bias=boolean(config, "attention_bias"),
        mlp_bias=boolean(config, "mlp_bias"),
    )


def positive(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer of config.json; a missing or null entry gives the default."""
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or value < 1:
        raise BadInput(f"config.json: {key} must be a positive integer; got {value!r}.")
    return value


def boolean(config: dict[str, Any], key: str) -> bool:
    """A flag of config.json; missing means false."""
    value = config.get(key, False)
    if type(value) is not bool:
        raise BadInput(f"config.json: {key} must be true or false; got {value!r}.")
    return value
