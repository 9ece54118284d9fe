"""A folder for the Hugging Face Hub, which `recognition.load_encoder` opens again.

It has the files that the Hub expects (https://huggingface.co/docs/hub/models-uploading):

    model.safetensors           weights, and the encoder's card as metadata: all that is needed to open it
    config.json                 the card, for other software
    preprocessor_config.json    how to prepare images, with transformers' keys
    README.md                   the model card, made from the run
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from eval.present.tables import Table, operating_table, rate_table, read_results, summary_row, verification_table
from recognition import __version__
from recognition.checkpoints import store
from recognition.encoders.card import FORMAT, MODEL, EncoderCard
from recognition.encoders.export import export_encoder
from utils import plugins
from utils.config import Config, from_base
from utils.errors import UserError
from utils.files import new_folder
from utils.images.alignment import ARCFACE_TEMPLATE

_PRIVATE = ("output", "val_dir")  # keys about the trainer's machine only
_PATHS = ("rec", "unlabelled", "init_from")  # of which only the last part is published


def publish(module: nn.Module, card: EncoderCard, run: Path, out: Path) -> None:
    """Write the folder `out`, whole or not at all. module, card: the encoder of `run`'s newest checkpoint.

    Raises UserError if the run has no results, or `out` exists.
    """
    file = run / "results.json"
    results = read_results(file) if file.is_file() else {}
    if not results:
        evaluate = f"python -m eval verify --checkpoint {run} --bins SET.bin --bootstrap 1000 --json {file}"
        raise UserError(f"--checkpoint {run}: no results.json with results, which a model card needs; evaluate first: {evaluate}")
    config = store.read_config(store.find(run))
    with new_folder(out) as partial:
        export_encoder(module, card, partial / MODEL)
        _write_json(partial / "config.json", _config(card))
        _write_json(partial / "preprocessor_config.json", _preprocessing(card))
        (partial / "README.md").write_text(_readme(out.resolve().name, card, config, results), encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _config(card: EncoderCard) -> dict[str, Any]:
    about = {"model_type": "qgface", "architectures": [card.network], "format": FORMAT, "version": __version__}
    return about | asdict(card)


def _preprocessing(card: EncoderCard) -> dict[str, Any]:
    side = {"height": card.input_size, "width": card.input_size}
    return {
        "do_resize": False,  # faces are aligned to this size, not resized
        "size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [card.mean / 255] * 3,
        "image_std": [card.std / 255] * 3,
        "channel_order": card.channel_order,
        "alignment": {"landmarks": "eyes, nose, corners of the mouth (x, y)", "template": ARCFACE_TEMPLATE.tolist()},
    }


# ------------------------------------------------------------------------------------------------ the model card


def _readme(name: str, card: EncoderCard, config: Config, results: Mapping[str, Mapping[str, float]]) -> str:
    return _TEXT.format(
        name=name,
        index=json.dumps(_model_index(name, results)),
        network=card.network,
        size=card.embedding_size,
        input=card.input,
        requirement=_requirement(card),
        arguments=f', network="{card.network}"' if plugins.is_plugin(card.network) else "",
        data=_data(config),
        recipe="\n".join(f"    {key} = {value!r}" for key, value in _recipe(config).items()),
        results=_results(results),
        thresholds=_thresholds(card),
        sets=", ".join(results),
    )


def _model_index(name: str, results: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """https://huggingface.co/docs/hub/model-cards#evaluation-results"""
    task = {"type": "face-verification", "name": "Face verification"}
    found = [
        {
            "task": task,
            "dataset": {"name": data, "type": data},
            "metrics": [{"type": "accuracy", "value": metrics["accuracy"], "name": "ten-fold accuracy"}],
        }
        for data, metrics in results.items()
        if "accuracy" in metrics
    ]
    return [{"name": name, "results": found}] if found else []


def _requirement(card: EncoderCard) -> str:
    """What opening the folder needs besides this toolkit."""
    if card.network.startswith("timm:"):
        return "\nThe network is one of timm: `pip install -r requirements/timm.txt`.\n"
    if plugins.is_plugin(card.network):
        module = card.network.partition(":")[0]
        return (
            f"\nThe network is a plug-in: **its code, the module `{module}`, is not in this folder**. Publish it too, and make "
            "it importable (`PYTHONPATH`). It is imported only because the call names it.\n"
        )
    return ""


def _data(config: Config) -> str:
    text = f"{config.num_image:,} images of {config.num_classes:,} people: {', '.join(map(_last_part, config.data_sets))}."
    if config.unlabelled:
        text += f" Images without identities: {_last_part(config.unlabelled)}."
    if config.init_from:
        text += f" Training started from {_last_part(config.init_from)}, whose licence applies too."
    return text


def _recipe(config: Config) -> dict[str, Any]:
    """The keys that differ from configs/base.py."""
    defaults = vars(from_base())
    changed = {key: value for key, value in vars(config).items() if value != defaults[key] and key not in _PRIVATE}
    return {key: _last_parts(value) if key in _PATHS else value for key, value in changed.items()}


def _last_parts(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return _last_part(value) if isinstance(value, str) else tuple(map(_last_part, value))


def _last_part(path: str) -> str:
    return Path(path).name


def _results(results: Mapping[str, Mapping[str, float]]) -> str:
    pairs = {name: metrics for name, metrics in results.items() if "accuracy" in metrics}
    tables: list[Table] = []
    if pairs:
        bounds = {name: _intervals(metrics) for name, metrics in pairs.items()}
        tables += [verification_table(pairs, bounds, published=False), operating_table(pairs)]
    others = {name: metrics for name, metrics in results.items() if name not in pairs}
    if row := summary_row(others):
        columns = {column: column for column in row}
        tables.append(rate_table("benchmark (%)", columns, {"": {column: value / 100 for column, value in row.items()}}))
    return "\n\n".join(table.markdown() for table in tables)


def _intervals(metrics: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    return {key: (metrics[f"{key} low"], metrics[f"{key} high"]) for key in metrics if f"{key} low" in metrics}


def _thresholds(card: EncoderCard) -> str:
    if not card.thresholds:
        return "None has been measured."
    rows = [[each.name, f"{each.cosine:.4f}", each.rates or "unknown", each.sets] for each in card.thresholds]
    return Table(["name", "cosine", "error rates", "measured on"], rows).markdown()


_TEXT = """---
license: other  # fill in an identifier of https://huggingface.co/docs/hub/repositories-licenses, or name and link below
license_name: to-be-filled-in
license_link: LICENSE
library_name: qgface
pipeline_tag: image-feature-extraction
tags: [face-recognition, face-verification, biometrics, safetensors]
model-index: {index}
---

# {name}

A face encoder, `{network}`: an aligned face of 112x112 pixels -> {size} numbers, whose cosine measures whether two faces show the
same person, and whose norm measures the image's quality. Trained with QGFace at scale.

## Use

```python
from recognition import load_encoder

encoder = load_encoder("{name}"{arguments})    # this folder; runs no code from it
features = encoder.embed(images)  # uint8 RGB [n, 112, 112, 3] -> float32 [n, {size}]
```
{requirement}
Network input: {input}. Align faces by five landmarks; `preprocessor_config.json` has the template. The scores below add
the features of the mirror image.

## Data

{data}

[Fill in: where the images come from, their licence, who consented to what.]

## Recipe

Settings that differ from `configs/base.py`:

{recipe}

## Results

{results}

Intervals are of 95 %. Accuracies are means of ten folds.

## Thresholds

{thresholds}

## Limits

The figures hold for these sets only: {sets}. Choose a threshold on images of your own cameras and people (`eval threshold`).
Errors differ between groups of people and rise with small, blurred, dark or turned faces; beyond the sets above, neither has been
measured.
[Fill in: known failures, error rates by group (`eval rfw`).]

## Intended use and the law

For research, and for comparing faces of people who agreed to it. Not for covert surveillance, for inferring emotions, origin or
other traits, nor as the only basis of a decision about a person. Features are biometric data. In the EU, Article 9 GDPR forbids
using them to identify people except in the cases it lists, such as explicit consent; the AI Act (Regulation (EU) 2024/1689)
bans untargeted scraping of facial images and restricts real-time remote identification in public (Article 5), and classes other
remote biometric identification as high-risk (Annex III). In the USA, Illinois (BIPA), Texas and Washington regulate biometric
identifiers. Other places have laws of their own: check those that apply to you before use. This is not legal advice.
"""
