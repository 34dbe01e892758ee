from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.small import composed, members
from unlabeled.evaluation.comparison.references import (
    COUNTS,
    PUBLISHED,
    SIZES,
    backbone_name,
    data_name,
    describe_crops,
    objective_names,
    references_for,
)
from unlabeled.evaluation.evaluate_probes import Row

CIFAR = (50_000, 10_000, 10)
IMAGENET = (1_281_167, 50_000, 1000)


def config(experiment: str, *overrides: str) -> dict[str, Any]:
    given = ["data.path=x"] if experiment.endswith(("_cpu", "imagenet")) or "_imagenet_" in experiment else []
    masks = ["views.masks=null"] if "relic" in experiment else []
    found: Any = OmegaConf.to_container(composed(f"experiment={experiment}", *given, *masks, *overrides), resolve=True)
    return dict(found)


def rows(counts: tuple[int, int, int], **protocols: float) -> list[Row]:
    train, test, classes = counts
    found = [Row("pretrained", name, top1, n_train=train, n_test=test) for name, top1 in protocols.items()]
    return [*found, Row("chance", "chance/uniform", 100 / classes, {"classes": classes}, n_test=test)]


def of(source: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    matching = [each for each in found if source in each["source"]]
    assert len(matching) == 1, [each["source"] for each in found]
    return matching[0]


LINEAR, KNN20, KNN200 = "linear/cached-lbfgs-v1", "knn/cosine-exp/k=20/T=0.1", "knn/cosine-exp/k=200/T=0.1"


def test_the_same_recipe_lists_its_number_with_the_difference_and_the_flags_of_the_protocol_alone() -> None:
    run = config("moco_v2_cifar10")
    demo = of("moco_cifar10_demo", references_for(run, rows(CIFAR, **{LINEAR: 88.0, KNN20: 86.0, KNN200: 84.8})))
    assert demo["published"] == 85.3  # symmetric, 200 epochs
    assert (demo["ours"], demo["ours_protocol"]) == (84.8, KNN200)
    assert demo["difference"] == pytest.approx(-0.5)
    assert demo["protocol"] == "k-NN of the head's 128 outputs, not of the backbone's features, k = 200, T = 0.1"
    unknown = "the source does not say of which epoch it is; ours is the last"
    assert demo["differs"] == [f"ours is {KNN200}", unknown]


def test_other_epochs_another_batch_and_other_settings_are_flags() -> None:
    run = config("moco_v2_cifar10", "max_epochs=20", "batch_size=256", "objective.symmetric=false")
    found = references_for(run, rows(CIFAR, **{KNN200: 70.0}))
    demo = of("moco_cifar10_demo", found)
    assert demo["published"] == 82.6  # the asymmetric one
    assert demo["differs"][:2] == ["epochs 20 instead of 200", "batch size 256 instead of 512"]
    lightly = of("lightly", found)
    assert "the published number is the best epoch's on the test set; ours is the last's" in lightly["differs"]


def test_epochs_that_were_trained_count_and_not_those_that_were_planned() -> None:
    run = config("moco_v2_cifar10")
    demo = of("moco_cifar10_demo", references_for(run, rows(CIFAR, **{KNN200: 70.0}), epochs=12.5))
    assert demo["differs"][0] == "epochs 12.5 instead of 200"


def test_the_nearest_number_of_epochs_is_listed() -> None:
    for epochs, top1 in ((100, 72.1), (200, 73.9), (700, 75.3)):
        found = references_for(config("swav_imagenet", f"max_epochs={epochs}"), rows(IMAGENET, **{LINEAR: 70.0}))
        assert of("facebookresearch/swav", found)["published"] == top1
    without_small_crops = config("swav_imagenet", "max_epochs=400")
    without_small_crops["views"]["groups"] = without_small_crops["views"]["groups"][:1]
    found = references_for(without_small_crops, rows(IMAGENET, **{LINEAR: 70.0}))
    assert of("facebookresearch/swav", found)["published"] == 70.1


def test_a_cached_linear_probe_is_never_passed_off_as_a_published_one() -> None:
    published = of("solo-learn", references_for(config("simclr_cifar10"), rows(CIFAR, **{LINEAR: 90.0})))
    assert published["protocol"] == "linear classifier trained beside the backbone (online)"
    assert f"ours is {LINEAR}: features computed once, without augmentation" in published["differs"]


def test_only_the_recipe_itself_goes_without_a_flag_of_its_protocol() -> None:
    run, name = config("simclr_imagenet"), "linear/simclr-online/epochs=90/batch=4096/lr=0.1"
    known = "the data are taken for imagenet by their counts alone (1,281,167 train images)"
    same = of("released checkpoints", references_for(run, rows(IMAGENET, **{LINEAR: 66.0, name: 68.9})))
    assert (same["ours"], same["ours_protocol"], same["differs"]) == (68.9, name, [known])
    shorter = name.replace("epochs=90", "epochs=9")
    other = of("released checkpoints", references_for(run, rows(IMAGENET, **{LINEAR: 66.0, shorter: 60.0})))
    assert (other["ours"], other["differs"]) == (60.0, [known, f"ours is {shorter}"])
    noted = rows(IMAGENET, **{name: 68.9})
    noted[0].notes.append("Here the crops are torchvision's.")
    assert "Here the crops are torchvision's." in of("released checkpoints", references_for(run, noted))["differs"]


def test_a_classifier_on_a_part_of_the_labels_is_no_linear_evaluation() -> None:
    found = references_for(config("simclr_cifar10"), rows(CIFAR, **{f"{LINEAR}/1%": 60.0}))
    assert of("solo-learn", found)["ours"] is None
    assert of("solo-learn", found)["difference"] is None
    assert "not measured here: no probe of the kind linear" in of("solo-learn", found)["differs"]


def test_labels_of_paws_decide_which_number_is_its_own() -> None:
    run = config("paws_imagenet", "objective.support.fraction=0.01", "max_epochs=100")
    found = references_for(run, rows(IMAGENET, **{"paws_nn/head/12820 labels/T=0.1": 60.0, LINEAR: 50.0}))
    near = of("soft nearest neighbours", found)
    assert (near["published"], near["ours"]) == (61.5, 60.0)
    tuned = of("suncet README, fine-tuned", found)
    assert (tuned["published"], tuned["ours"]) == (63.8, None)
    ten = references_for(config("paws_imagenet"), rows(IMAGENET, **{"paws_nn/head/12820 labels/T=0.1": 60.0}))
    assert (of("soft nearest", ten)["published"], of("soft nearest", ten)["ours"]) == (73.1, None)


def test_fine_tuning_is_compared_at_the_same_share_of_labels() -> None:
    run = config("mae_imagenet_vit_base")
    names = {
        f"finetune/mae/labels={share}/epochs=100/batch=1024/lr=5e-4": top1
        for share, top1 in (("1%", 40.0), ("100%", 83.0))
    }
    found = of("ViT-B, fine-tuned", references_for(run, rows(IMAGENET, **names)))
    assert (found["published"], found["ours"]) == (83.66, 83.0)
    assert not any(sentence.startswith("ours is finetune") for sentence in found["differs"])


@pytest.mark.parametrize(
    ("experiment", "overrides", "counts"),
    [
        ("digits", (), (1347, 450, 10)),
        ("cifar10_cpu", (), CIFAR),  # a thin ResNet
        ("simclr_cifar10", ("backbone=resnet50",), CIFAR),
        ("simclr_cifar10", ("backbone.width=2",), CIFAR),
        ("mae_cifar10", (), CIFAR),
        ("simclr_imagenet", (), (1_281_167, 50_000, 100)),
        ("simclr_imagenet", (), (500_000, 50_000, 1000)),
    ],
)
def test_where_objective_backbone_or_data_are_others_nothing_is_listed(
    experiment: str, overrides: tuple[str, ...], counts: tuple[int, int, int]
) -> None:
    assert references_for(config(experiment, *overrides), rows(counts, **{LINEAR: 50.0, KNN200: 50.0})) == []


def test_a_checkpoint_from_elsewhere_has_no_references() -> None:
    assert references_for({}, rows(CIFAR, **{LINEAR: 50.0})) == []
    assert references_for({"objective": None, "backbone": None, "data": None, "views": None}, []) == []


def test_every_experiment_is_recognised_or_known_to_have_no_published_number() -> None:
    names = {
        name: (objective_names(run), backbone_name(run)) for name in members("experiment") if (run := config_of(name))
    }
    assert names["moco_v1_imagenet"] == (["moco", "moco_v1"], "resnet50/imagenet")
    assert names["moco_v2_imagenet"] == (["moco", "moco_v2"], "resnet50/imagenet")
    assert names["moco_v3_imagenet_vit_small"] == (["moco_v3"], "vit_small/16")
    assert names["relicv2_imagenet"] == (["relicv2"], "resnet50/imagenet")
    assert names["simclr_imagenet"] == (["simclr", "simclr_v1"], "resnet50/imagenet")
    assert names["paws_imagenet"] == (["paws"], "resnet50/imagenet")
    assert names["mae_imagenet_vit_base"] == (["mae"], "vit_base/16")
    assert names["ibot_imagenet_vit_small"] == (["ibot"], "vit_small/16")
    assert names["dinov2_imagenet_vit_large"] == (["dinov2"], "vit_large/16")
    assert names["ijepa_imagenet_vit_huge"] == (["ijepa"], "vit_huge/14")
    for method in ("simmim", "data2vec"):
        assert names[f"{method}_imagenet_vit_base"] == ([method], "vit_base/16")
    assert names["swav_cifar10"] == (["swav"], "resnet18/cifar")
    assert names["seer_regnety_32gf"][1] is None
    assert names["triplet_cifar10_cpu"][0] == ["triplet"]
    for method in ("byol", "simsiam", "barlow_twins", "vicreg", "nnclr"):
        assert names[f"{method}_imagenet"] == ([method], "resnet50/imagenet")
        assert names[f"{method}_cifar10"] == ([method], "resnet18/cifar")


def config_of(experiment: str) -> dict[str, Any]:
    path = ["data.path=x"] if experiment == "seer_regnety_32gf" else []
    return config(experiment, *path)


def test_crops_are_those_of_the_papers() -> None:
    assert describe_crops(config("swav_imagenet")) == "2x224+6x96"
    assert describe_crops(config("relicv2_imagenet")) == "4x224+2x96"
    assert describe_crops({}) is None


def test_data_are_known_by_their_source_or_by_counts_with_a_doubt() -> None:
    assert data_name({"data": {"_target_": "unlabeled.data.sources.torchvision.cifar10"}}, []) == ("cifar10", [])
    name, doubt = data_name(
        {"data": {"_target_": "unlabeled.data.sources.folder.folder"}}, rows((1_281_160, 50_000, 1000), a=1.0)
    )
    assert name == "imagenet"
    assert doubt == ["the data are taken for imagenet by their counts alone (1,281,160 train images)"]
    assert data_name({}, []) == (None, [])


def test_every_published_number_has_a_source_and_is_of_something_known() -> None:
    groups: Any = OmegaConf.to_container(OmegaConf.load(PUBLISHED))
    backbones = {"resnet18/cifar", "resnet18/imagenet", "resnet50/imagenet"}
    backbones |= {"vit_small/16", "vit_base/16", "vit_large/16", "vit_huge/14"}
    objectives = {"simclr", "simclr_v1", "simclr_v2", "moco", "moco_v1", "moco_v2", "moco_v3"}
    objectives |= {
        "swav",
        "relicv2",
        "paws",
        "mae",
        "byol",
        "simsiam",
        "barlow_twins",
        "vicreg",
        "dino",
        "ibot",
        "dinov2",
        "ijepa",
        "simmim",
        "data2vec",
        "nnclr",
        "supcon",
    }
    protocol = {"family", "how", "epoch", "same_as", "k", "T"}
    keys = {"source", "data", "backbone", "epochs", "batch", "crops", "protocol", "values", "recipe", "labels", "note"}
    assert set(COUNTS) == set(SIZES)
    for group in groups:
        assert set(group) <= keys
        assert len(group["source"]) > 10
        assert group["data"] in COUNTS
        assert group["backbone"] in backbones
        assert set(group["protocol"]) <= protocol
        assert group["protocol"]["epoch"] in ("last", "best", "unknown")
        assert group["protocol"]["family"] in ("linear", "knn", "finetune", "paws_nn")
        for value in group["values"]:
            assert set(value) <= {"objective", "epochs", "batch", "crops", "top1", "recipe", "labels", "note"}
            assert value["objective"] in objectives
            assert 10 < value["top1"] < 95
            assert "labels" in {**group, **value} or group["protocol"]["family"] not in ("finetune", "paws_nn")
