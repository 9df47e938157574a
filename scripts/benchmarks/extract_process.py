"""What fair-esm's ``scripts/extract.py`` does, which its package leaves out: FASTA to one file of means a protein.

Called as ``extract_process.py MODEL FASTA FOLDER``. Its batches (4,096 tokens) and its files (torch.save), but nothing
is truncated (extract.py cuts to 1,022 residues by default) and the weights come from a Hugging Face checkpoint, so
that it does the same work as the others.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    import esm
    import torch

    from benchmarks.embedding import fair_esm_model

    model_folder, fasta, target = map(Path, sys.argv[1:])
    model, alphabet = fair_esm_model(model_folder)
    data = esm.FastaBatchedDataset.from_file(fasta)
    batches = data.get_batch_indices(4096, extra_toks_per_seq=1)
    loader = torch.utils.data.DataLoader(data, collate_fn=alphabet.get_batch_converter(), batch_sampler=batches)
    target.mkdir(parents=True, exist_ok=True)
    layer = model.num_layers
    with torch.no_grad():
        for labels, texts, tokens in loader:
            states = model(tokens, repr_layers=[layer], return_contacts=False)["representations"][layer].to("cpu")
            for state, label, text in zip(states, labels, texts, strict=True):
                means = {layer: state[1 : len(text) + 1].mean(0).clone()}
                torch.save({"label": label, "mean_representations": means}, target / f"{label}.pt")


if __name__ == "__main__":
    main()
