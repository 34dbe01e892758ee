"""Fine-tuning: trains the whole network and a new classifier on all or some of the labels."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unlabeled.backbones.transformer import DropPath
from unlabeled.core.ranges import Count, FilePath, LearningRate, NotNegative, PartialShare, Seed, SomeShare
from unlabeled.core.seeding import derive_seed
from unlabeled.data.labels import LabelSelection
from unlabeled.errors import UserError
from unlabeled.evaluation.probe import Head, Score, Task
from unlabeled.evaluation.recipes.augmentation import MIXING, Augmentation, Mixing
from unlabeled.evaluation.recipes.frozen import HEAD, config_key, format_protocol
from unlabeled.evaluation.recipes.labels import describe_selection, select_labelled
from unlabeled.evaluation.recipes.layer_decay import layer_decay_groups, transformer_blocks
from unlabeled.evaluation.recipes.linear import init_normal, mean_loss
from unlabeled.evaluation.recipes.loop import TrainingPass, autocast, make_score, plain_logits, training_steps
from unlabeled.evaluation.recipes.training import Training
from unlabeled.objective import Backbone
from unlabeled.optimizers import parameter_groups
from unlabeled.views.per_image import preserve_random_state, seed_all

Pooling = Literal["network", "fc_norm"]
LEFT_OUT = "left_out"  # name of the DropPath in a branch; it has no tensors


class FineTune:
    """A copy of the network trained with a linear classifier; BatchNorm in train mode. The last epoch is reported.

    Args:
        name: begins the protocol, e.g. ``finetune/mae``; ``finetune_mae`` is the key below ``probe``.
        training: length, optimizer and schedule of the training.
        augmentation: of the training images.
        mixing: of pairs of images and their labels; None: labels as they are.
        learning_rate: of the network, for 256 images a step; of the classifier too where it has none of its own.
        head_learning_rate: of the classifier; None: that of the network.
        layer_decay: factor on the rate from a block to the one before it; None: one rate for all blocks.
        drop_path: probability that the last block's branches are dropped for an image, rising linearly from 0 at the
            first.
        pooling: ``network`` classifies the network's output; ``fc_norm`` the mean of a ViT's patches, normalised
            after the mean by a new LayerNorm in place of the last one (facebookresearch/mae, models_vit.py).
        head_init_std: standard deviation of the classifier's initial weights, 0 for zeros; its biases are 0.
        labels_file, fraction, per_class, labels_seed: which training images, see
            :class:`unlabeled.data.labels.LabelSelection`.
        baselines: True: also train a random network.
        differs: differences from the publication, in sentences.
        dropout: probability that a feature is dropped before the classifier.

    Raises:
        UserError: numbers that cannot work together.
    """

    def __init__(
        self,
        name: str,
        training: Training,
        augmentation: Augmentation,
        mixing: Mixing | None,
        learning_rate: LearningRate,
        head_learning_rate: LearningRate | None,
        layer_decay: SomeShare | None,
        drop_path: PartialShare,
        pooling: Pooling,
        head_init_std: NotNegative,
        labels_file: FilePath | None,
        fraction: SomeShare | None,
        per_class: Count | None,
        labels_seed: Seed,
        baselines: bool,
        differs: Sequence[str],
        dropout: PartialShare = 0.0,
    ) -> None:
        self.name, self.key = name, config_key(name)
        self.training, self.augmentation, self.mixing = training, augmentation, mixing
        self.learning_rate, self.head_learning_rate = learning_rate, head_learning_rate
        self.layer_decay, self.drop_path, self.dropout = layer_decay, drop_path, dropout
        self.pooling, self.head_init_std = pooling, head_init_std
        self.choice = LabelSelection(labels_file, fraction, per_class, labels_seed, self.key)
        self.baselines, self.differs = baselines, list(differs)
        self.needs, self.needs_key = training.batch_size, "training.batch_size"
        self._check()

    def _check(self) -> None:
        self.training.check(f"{self.key}.training")
        self.augmentation.check(f"{self.key}.augmentation")
        if self.pooling not in ("network", "fc_norm"):
            raise UserError(f"{self.key}.pooling={self.pooling} is neither network nor fc_norm")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"{self.key}.drop_path={self.drop_path}: must be at least 0 and less than 1")
        if self.layer_decay is not None and self.head_learning_rate is not None:
            raise UserError(f"{self.key}: layer_decay gives the classifier its rate, leave head_learning_rate null")

    @property
    def protocol(self) -> str:
        """Returns the name under which a score of this probe is reported."""
        own = "" if self.head_learning_rate is None else f"+{self.head_learning_rate:g}"
        changed = [*self.augmentation.describe(), *(self.mixing.describe() if self.mixing is not None else [])]
        name = f"{self.name}/labels={describe_selection(self.choice)}"
        return format_protocol(name, self.training, f"{self.learning_rate:g}{own}", changed)

    def train_predict(self, task: Task) -> list[Score]:
        """Returns one Score; ``task.network`` stays unchanged. Classes without a listed image are never predicted.

        Raises:
            UserError: the network does not suit the recipe, there are too few images, or the training diverged.
        """
        self.check_network(task.network)
        listed = select_labelled(self.choice, task)
        self.training.check_images(f"{self.key}.training", len(listed.ids))
        with preserve_random_state(task.device):
            model = self.model(task)
            loss = self.fit(task, listed.ids, model)
            logits, labels = self.logits(task, "test", torch.arange(len(task.test_labels)), model)
        chosen: dict[str, Any] = {"chosen_on": "nothing", **listed.summary(), "learning_rate": self.learning_rate}
        chosen |= self.training.summary() | {"layer_decay": self.layer_decay} | self.left_out()
        seen, metrics, used = torch.unique(listed.labels), {"train_loss": loss}, len(listed.ids)
        score = make_score(self.protocol, logits, labels, seen, self.key, chosen, self.differs, metrics, used)
        score.head = self._head(task, model, seen)
        return [score]

    def _head(self, task: Task, model: "Classifier", seen: Tensor) -> Head:
        """Makes what is kept: the whole network with its classifier, and how many images go through it at once."""
        state = {f"state.{name}": value.detach() for name, value in model.state_dict().items()}
        settings = {"pooling": self.pooling, "images_per_pass": self.training.at_once, "precision": task.precision}
        return Head("network", "last", state | {"columns": seen.cpu()}, settings | self.left_out())

    def left_out(self) -> dict[str, float]:
        """Returns what is left out at random in training: members of an ensemble may leave it out again."""
        return {"drop_path": self.drop_path, "dropout": self.dropout}

    def check_network(self, network: Backbone) -> None:
        """Raises UserError for a network that the recipe does not suit."""
        needs_blocks = self.layer_decay is not None or self.drop_path > 0 or self.pooling == "fc_norm"
        if needs_blocks and not hasattr(network, "blocks"):
            raise UserError(
                f"{self.key}: layer_decay, drop_path and pooling=fc_norm are for a ViT, {type(network).__name__} has "
                "no blocks: give null, 0 and network"
            )

    def model(self, task: Task) -> "Classifier":
        """Makes a copy of the network with a new classifier."""
        seed_all(derive_seed(self.training.seed, HEAD), task.device)
        network = copy.deepcopy(task.network).requires_grad_(True)  # also positions and a fixed patch projection
        if self.drop_path:
            add_drop_path(network, self.drop_path)
        return Classifier(network, task.num_classes, self.pooling, self.head_init_std, self.dropout).to(task.device)

    def fit(self, task: Task, positions: Tensor, model: "Classifier") -> float:
        """Trains on the images at ``positions`` of train; returns the mean training loss of the last epoch."""
        if self.training.at_once < 2:
            raise UserError(
                f"{self.key}: batch_size={self.training.batch_size} and images_per_pass="
                f"{self.training.images_per_pass}: a pass of one image trains nothing here; give 2 or more of both"
            )
        optimizer = self.optimizer(model.train())
        scaler = torch.amp.GradScaler(task.device.type, enabled=task.precision == "16-mixed")
        per_epoch = len(self.training.batch_sizes(len(positions)))
        losses: list[Tensor] = []
        for step, passes in training_steps(task, positions, self.training, self.augmentation):
            self.training.prepare(optimizer, self.learning_rate, step, per_epoch)
            optimizer.zero_grad()
            found = [self._backward(model, each, task, scaler) for each in passes if len(each.labels) > 1]
            if not found:  # BatchNorm cannot train on one image
                continue
            scaler.unscale_(optimizer)
            self.training.clip(model.parameters())
            scaler.step(optimizer)
            scaler.update()
            if step >= (self.training.epochs - 1) * per_epoch:
                losses.append(torch.stack(found).sum())
        return float(torch.stack(losses).mean())

    def _backward(self, model: "Classifier", each: TrainingPass, task: Task, scaler: torch.amp.GradScaler) -> Tensor:
        images, targets = each.views, each.labels
        if self.mixing is not None:
            images, targets = self.mixing.apply(images, targets, task.num_classes, derive_seed(each.seed, MIXING))
        with autocast(task.device, task.precision):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = mean_loss(logits, targets) * each.share
        torch.autograd.backward(scaler.scale(loss))
        return loss.detach()

    def optimizer(self, model: "Classifier") -> Optimizer:
        """Makes the optimizer of the whole network and the classifier, with each parameter's learning-rate factor."""
        if self.layer_decay is not None:
            groups = layer_decay_groups(model.network, model.top, self.layer_decay, self.training.weight_decay)
        else:
            own = 1.0 if self.head_learning_rate is None else self.head_learning_rate / self.learning_rate
            decay = (self.training.weight_decay, self.training.decay_bias_and_norm)
            groups = parameter_groups(model.network, *decay)
            groups += [group | {"lr_scale": own} for group in parameter_groups(model.top, *decay)]
        return self.training.optimizer(groups, lr=0.0)

    def logits(self, task: Task, split: str, positions: Tensor, model: "Classifier") -> tuple[Tensor, Tensor]:
        """Returns the logits [N, C] and labels of images of ``train`` or ``test`` as evaluation sees them."""
        model.eval()

        def predict(views: Tensor) -> list[Tensor]:
            with autocast(task.device, task.precision):
                return [model(views.contiguous(memory_format=torch.channels_last))]

        [logits], labels = plain_logits(task, split, positions, self.training.at_once, predict)
        return logits, labels


class Classifier(nn.Module):
    """A network with a classifier: images [B, 3, h, w] → logits [B, classes]. See :class:`FineTune`."""

    def __init__(
        self, network: Backbone, classes: int, pooling: Pooling, head_init_std: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        linear = nn.Linear(network.num_features, classes)
        init_normal(linear.weight, head_init_std)
        nn.init.zeros_(linear.bias)
        self.network, self.pooling = network, pooling
        if pooling == "fc_norm":
            transformer_blocks(network)
            network.norm = nn.Identity()
        norm = nn.LayerNorm(network.num_features, eps=1e-6) if pooling == "fc_norm" else nn.Identity()
        self.top = nn.Sequential(norm, linear)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        if self.pooling == "fc_norm":
            features = self.network.features(images, ["tokens"])["tokens"].mean(1)
        else:
            features = self.network(images)
        logits: Tensor = self.top(self.dropout(features))
        return logits


def add_drop_path(network: nn.Module, rate: float) -> None:
    """Makes blocks drop their branches at random in training (Huang et al. 2016, arXiv:1603.09382).

    Each of a block's two branches is dropped per image, at block i of L with probability rate · i / (L − 1); kept
    branches are scaled up (timm's DropPath). Raises UserError where there are no blocks with ``attn`` and ``mlp``.
    """
    blocks = transformer_blocks(network)
    for number, block in enumerate(blocks):
        for branch in (getattr(block, "attn", None), getattr(block, "mlp", None)):
            if branch is None:
                raise UserError(f"{type(block).__name__} has no attn and mlp, which drop_path needs: give 0")
            dropped = DropPath(rate * number / max(1, len(blocks) - 1))
            branch.add_module(LEFT_OUT, dropped.train(branch.training))
            branch.register_forward_hook(_leave_out)


def _leave_out(module: nn.Module, given: Any, made: Tensor) -> Tensor:
    left: Tensor = module.get_submodule(LEFT_OUT)(made)
    return left
