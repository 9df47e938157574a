"""Padding-free encoding through the Hugging Face model classes.

A packed row holds many sequences. An attention function registered with transformers keeps each sequence to itself,
positions restart in each sequence, and the few places where the classes assume one sequence a row are told where the
sequences lie (:mod:`plm.model.families`). Gradients, PEFT wrappers and gradient checkpointing work as with the plain
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from plm.errors import UserError
from plm.model import attention, attention_on_gpu, few_shapes, float_products
from plm.model.batching import Batch, RowLayout, pack, plan_batches
from plm.model.families import ModelFamily

if TYPE_CHECKING:
    from plm.model.loaded import LoadedModel

ATTENTION = "plm_packed"
_HARMLESS = ("position_ids", "output_attentions", "output_hidden_states", "return_dict", "use_cache", "past_key_values")
"""What transformers hands down to attention that changes nothing here."""
ROW_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens in a row where nobody says otherwise: on processors what the caches hold, on CUDA what fills the device."""

AHEAD = 3
"""Rows that are packed, sent to a CUDA device and begun there while earlier ones are still computed or taken in."""

Result = TypeVar("Result")


def packed_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, packing: RowLayout | None = None,
    position_bias: torch.Tensor | None = None, contacts: Callable[[torch.Tensor], None] | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each sequence of a packed row; the function that transformers calls.

    Args:
        module: The attention layer.
        query: ``(1, H, T, D)``; ``key`` and ``value`` likewise.
        attention_mask: Unused: a packed row has no padding.
        scaling: Factor of the scores; ``D ** -0.5`` by default.
        dropout: Dropout probability of the attention weights.
        packing: Where the sequences lie; one sequence fills the row if None.
        position_bias: T5's relative bias, as :func:`plm.model.attention.attend` wants it.
        contacts: Takes the attention weights ``(H, T, T)`` of a row that is one sequence.
        kwargs: What else the layer asks for.

    Returns:
        ``(1, T, H, D)`` and None (no attention weights are kept).

    Raises:
        ValueError: The layer asks for attention of another kind (windows, causal, capped scores, ...): a
            family whose record leaves its layers out.
    """
    other = [name for name, value in kwargs.items() if value is not None and name not in _HARMLESS]
    if other or attention_mask is not None or getattr(module, "is_causal", False):
        raise ValueError(f"{type(module).__name__} asks for {', '.join(other) or 'a mask'}, which rows lack")
    tokens, width = query.shape[2:]
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    scale = width**-0.5 if scaling is None else scaling
    if contacts is not None:
        contacts(attention.weights(query, key, scale=scale, bias=position_bias))
    attended = attention.attend(
        query, key, value, RowLayout((tokens,)) if packing is None else packing, scale=scale, bias=position_bias,
        dropout=dropout,
    )
    return attended.unsqueeze(0), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def register() -> None:
    """Makes ``attn_implementation="plm_packed"`` known to transformers; may be called often."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)


def adapt(model: Any, family: ModelFamily) -> None:
    """Tells the layers of a loaded model how to work on packed rows. Parameters and their names stay as they are."""
    replaced = family.layers()
    for module in model.modules():
        if type(module) in replaced:
            module.__class__ = replaced[type(module)]
    float_products.adapt(model)
    for whole in (model, model.base_model):
        whole.packed_family = family


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def body(model: nn.Module) -> Any:
    """The encoder alone: without a language-model head, but with its PEFT wrapper."""
    base = unwrap(model)
    return model if base.base_model is base else base.base_model


def language_head(model: nn.Module) -> Any:
    """What makes logits ``(T, V)`` of the last hidden states ``(T, D)``; None if the model was loaded without it."""
    base = unwrap(model)
    return getattr(base, base.packed_family.head, None) if base.packed_family.head else None


def contact_head(model: nn.Module) -> Any:
    """The regression from attention maps to contacts; None if the family has none."""
    base = unwrap(model)
    return getattr(base.base_model, base.packed_family.contact_head) if base.packed_family.contact_head else None


def forward(model: nn.Module, batch: Batch, **options: Any) -> Any:
    """Runs a model on a packed row; the transformers output object, whose tensors are ``(1, T, ...)``.

    Args:
        model: Loaded by :func:`plm.model.checkpoint.load_model`, possibly wrapped by PEFT.
        batch: The packed row, on the model's device.
        options: Passed on to the model.

    Raises:
        UserError: A sequence is longer than the family's position embedding.
    """
    base = unwrap(model)
    family: ModelFamily = base.packed_family
    family.check_length(batch.layout.longest)
    device = batch.input_ids.device
    gradients = torch.is_grad_enabled()
    if few_shapes.applies(base.dtype, device, gradients=gradients) and "contacts" not in options:
        row = few_shapes.filled(batch)
        if row is not batch:
            outputs = model(**family.inputs(base.base_model, row), packing=row.layout, **options)
            return _first(outputs, batch.tokens)
    if device.type == "cuda":
        attention_on_gpu.prepare(batch.layout, device, biased=family.relative_bias, training=model.training)
    return model(**family.inputs(base.base_model, batch), packing=batch.layout, **options)


def _first(outputs: Any, tokens: int) -> Any:
    """Outputs of a row without those of tokens that fill it."""
    for name, value in outputs.items():
        if isinstance(value, tuple):
            outputs[name] = tuple(part[:, :tokens] for part in value)
        elif isinstance(value, torch.Tensor):
            outputs[name] = value[:, :tokens]
    return outputs


def hidden_states(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The last hidden state of every token, ``(T, D)`` in the model's dtype; gradients flow."""
    return forward(body(model), batch).last_hidden_state[0]


def layer_states(loaded: LoadedModel, batch: Batch, layers: Sequence[int]) -> list[torch.Tensor]:
    """The states of every token after some layers, each ``(T, D)`` in the model's dtype.

    Args:
        loaded: The model, for either purpose.
        batch: The packed row, on the model's device.
        layers: 0 for the token embeddings, n for the states after block n; the last one comes after the final layer
            norm (as fair-esm's ``repr_layers``).
    """
    if set(layers) <= {loaded.layers}:
        last = hidden_states(loaded.model, batch)
        return [last for _ in layers]
    states = forward(body(loaded.model), batch, output_hidden_states=True).hidden_states
    return [states[layer][0] for layer in layers]


def logits(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    """Scores of every vocabulary entry at every token, ``(T, V)``.

    Args:
        loaded: Loaded for the purpose ``masked_lm``.
        batch: The packed row, on the model's device.
    """
    return forward(loaded.model, batch).logits[0]


def residues(hidden: torch.Tensor, batch: Batch, family: ModelFamily) -> list[torch.Tensor]:
    """Splits ``(T, D)`` token states into one ``(L, D)`` tensor of residues a sequence, special tokens removed."""
    return split_residues(hidden, batch.lengths, family)


def split_residues(hidden: torch.Tensor, lengths: Sequence[int], family: ModelFamily) -> list[torch.Tensor]:
    """The same for sequences of ``lengths`` tokens."""
    before, after = len(family.before), len(family.after)
    return [piece[before : len(piece) - after] for piece in hidden.split(list(lengths))]


def first_tokens(hidden: torch.Tensor, batch: Batch, family: ModelFamily) -> torch.Tensor:
    """The state of each sequence's first special token, ``(B, D)``.

    Raises:
        UserError: The family puts no token in front of the residues.
    """
    if not family.before:
        raise UserError(
            f"{family.title} has no token in front of the residues", fix="Take the mean over the residues instead"
        )
    return hidden[batch.layout.edges(hidden.device)[:-1].long()]


def contacts(loaded: LoadedModel, sequence: str) -> torch.Tensor:
    """Probability that two residues touch, from the attention maps (Rao et al. 2021).

    The regression is summed layer by layer, so that the attention maps of one layer are all that memory must hold.

    Args:
        loaded: A model with the weights of its contact regression.
        sequence: The residues.

    Returns:
        ``(L, L)`` float32, symmetric.

    Raises:
        UserError: The family or the checkpoint has no contact regression.
    """
    if not loaded.has_contacts:
        raise UserError(
            "The checkpoint has no contact regression", where=loaded.files.id,
            fix="Use a published ESM-2 or ESM-1b checkpoint, or leave contacts out",
        )
    regression = contact_head(loaded.model).regression
    factors = regression.weight.float().view(loaded.layers, -1)
    total = torch.zeros((len(sequence), len(sequence)), device=loaded.device)

    def add(layer: int, maps: torch.Tensor) -> None:
        total.add_(torch.einsum("hij,h->ij", maps, factors[layer]))

    with torch.inference_mode():
        attention_maps(loaded, sequence, add)
        return (total + regression.bias.float()).sigmoid().cpu()


def attention_maps(loaded: LoadedModel, sequence: str, take: Callable[[int, torch.Tensor], None]) -> torch.Tensor:
    """Hands out the attention maps of one sequence layer by layer, so that memory holds those of one layer.

    Maps are symmetrised (the map and its transpose are added) and less the average product of their rows and columns
    (Dunn et al. 2008), without the special tokens, as Rao et al. (2021) regress contacts on them.

    Args:
        loaded: A model of any family.
        sequence: The residues.
        take: Called with the number of each layer (from 0) and its maps ``(H, L, L)`` float32 on the model's device.

    Returns:
        ``(L, D)`` last states of the residues, in the model's type.
    """
    batch = pack([loaded.token_ids(sequence)]).to(loaded.device)
    first = len(loaded.family.before)
    residues_only = slice(first, first + len(sequence))
    layer = iter(range(loaded.layers))

    def correct(weights: torch.Tensor) -> None:
        maps = weights[:, residues_only, residues_only]
        maps = maps + maps.transpose(1, 2)
        rows, whole = maps.sum(2), maps.sum((1, 2))
        take(next(layer), maps - rows[:, :, None] * (rows / whole[:, None])[:, None, :])

    states: torch.Tensor = forward(body(loaded.model), batch, contacts=correct).last_hidden_state[0]
    return states[residues_only]


def workers(device: torch.device) -> int:
    """How many rows are computed at a time: one a thread on processors (:func:`run`), one on CUDA."""
    return max(1, torch.get_num_threads()) if device.type == "cpu" else 1


class OnDevice(Protocol):
    """Something that lives on a device: a loaded model, a network."""

    @property
    def device(self) -> torch.device: ...


def run(
    loaded: OnDevice, batches: Iterable[Batch], compute: Callable[[Batch], Result], *, rows: int | None = None
) -> Iterator[Result]:
    """Computes rows without gradients, several at a time, and gives the results in the order of the rows.

    On processors each row is computed by one thread: no thread waits for another inside a layer, temporaries fit the
    caches, and a result is the same, to the bit, whatever the number of threads. On CUDA one thread sends rows and
    starts their work without ever waiting for the device, while the caller packs the next ones and takes in results.

    Args:
        loaded: The model, or what else says where it lives.
        batches: Packed rows; taken as they are needed.
        compute: Called with each row, on the model's device, in some thread. Tensors that it returns on CUDA, by
            themselves or in tuples and lists, come back to the host, in pinned memory.
        rows: Rows at a time; by default :func:`workers`.

    Yields:
        What ``compute`` returned, row by row, on the host.
    """
    import concurrent.futures
    from collections import deque

    device = loaded.device
    on_cpu = device.type == "cpu"
    count = workers(device) if rows is None else rows

    def alone(batch: Batch) -> Callable[[], Result]:
        with torch.inference_mode():
            if on_cpu:
                result = compute(batch)
                return lambda: result
            with torch.cuda.device(device):
                return fetching(compute(batch.to(device)))

    waiting: deque[concurrent.futures.Future[Callable[[], Result]]] = deque()
    options: Any = {"initializer": torch.set_num_threads, "initargs": (1,)} if on_cpu else {}
    pool = concurrent.futures.ThreadPoolExecutor(count if on_cpu else 1, thread_name_prefix="row", **options)
    try:
        for batch in batches:
            waiting.append(pool.submit(alone, batch))
            if len(waiting) > (count if on_cpu else AHEAD):
                yield waiting.popleft().result()()
        while waiting:
            yield waiting.popleft().result()()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def fetching(result: Result) -> Callable[[], Result]:
    """Starts to copy what the current CUDA device has computed into pinned memory.

    Args:
        result: A tensor, or tuples and lists of tensors and other things.

    Returns:
        Waits for the copies, and gives the same with tensors on the host.
    """

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_cuda:
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            return host.copy_(value, non_blocking=True)
        if isinstance(value, list):
            return [copied(one) for one in value]
        if isinstance(value, tuple):
            return type(value)._make(map(copied, value)) if hasattr(value, "_make") else tuple(map(copied, value))
        return value

    there = copied(result)
    done = torch.cuda.Event()
    done.record()

    def wait() -> Result:
        done.synchronize()
        answer: Result = there
        return answer

    return wait


def encode(
    loaded: LoadedModel, sequences: Sequence[str], budget: int | None = None, *,
    advance: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Residue representations of many sequences; equal sequences are computed once.

    Args:
        loaded: The model.
        sequences: Residue letters; what is not an amino acid counts as X.
        budget: Tokens in a packed row; by default what suits the device (:data:`ROW_TOKENS`).
        advance: Called with the number of sequences finished after each row.

    Returns:
        One ``(L, D)`` float32 tensor on the CPU a sequence, in input order. Equal sequences share one tensor.
    """
    unique = list(dict.fromkeys(sequences))
    ids = [loaded.token_ids(sequence) for sequence in unique]
    rows = plan_batches([len(x) for x in ids], budget or ROW_TOKENS[loaded.device.type])
    outputs: dict[str, torch.Tensor] = {}
    batches = (pack([ids[index] for index in row], row) for row in rows)
    computed = run(loaded, batches, lambda batch: hidden_states(loaded.model, batch).float())
    for row, states in zip(rows, computed, strict=True):
        pieces = split_residues(states, [len(ids[index]) for index in row], loaded.family)
        outputs.update((unique[index], piece.clone()) for index, piece in zip(row, pieces, strict=True))
        if advance is not None:
            advance(len(row))
    return [outputs[sequence] for sequence in sequences]
