"""What timm's scripts do with a model, by the same functions of timm: make it by its name, train, save and evaluate it.

The scripts themselves are not in timm's package.
"""

import argparse

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import create_model, load_checkpoint, resolve_model_input_args, safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, accuracy, dispatch_clip_grad


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir")
    parser.add_argument("--model")
    parser.add_argument("--num-classes", type=int)
    parser.add_argument("--img-size", type=int)
    arguments = parser.parse_args()
    # Those that train.py has besides.
    vars(arguments).update(opt="adamw", lr=1e-3, weight_decay=0.05, momentum=0.9, layer_decay=0.7, pretrained=False)
    made = resolve_model_input_args(arguments.model, vars(arguments), num_classes=arguments.num_classes)
    model = create_model(**made)
    model.set_grad_checkpointing()
    average = ModelEmaV3(model, decay=0.9)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=arguments))
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=1)
    config = resolve_data_config(vars(arguments), model=model)
    saver = CheckpointSaver(model, optimizer, args=arguments, model_ema=average, checkpoint_dir=".", recovery_dir=".")

    def loader(training: bool) -> torch.utils.data.DataLoader:
        split = "train" if training else "validation"
        dataset = create_dataset("", root=arguments.data_dir, split=split, is_training=training)
        return create_loader(dataset, batch_size=2, is_training=training, num_workers=1, use_prefetcher=False, **config)

    model.train()
    for images, labels in loader(training=True):
        LabelSmoothingCrossEntropy()(model(images), labels).backward()
        dispatch_clip_grad(model.parameters(), value=1.0)
        optimizer.step()
        average.update(model)
    scheduler.step(1)
    saver.save_checkpoint(0, metric=1.0)

    again = create_model(**made)
    load_checkpoint(again, "model_best.pth.tar")
    again.eval()
    with torch.inference_mode():
        found = [(again(images), labels) for images, labels in loader(training=False)]
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    print(safe_model_name(arguments.model), len(labels), float(accuracy(logits, labels)[0]))
