"""The objective of a student against direct computation in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from ingot.kit.train import distill, next_token
from ingot.kit.train.distill import Distillation, Teacher, ToTeacher
from ingot.kit.train.documents import Document
from ingot.kit.train.layout import Layout
from tinymodels import llama

PACKED, PADDED = Layout("packed", 64), Layout("padded", 64)
DOCS = [
    Document("a", (5, 6, 7, 8, 9, 10), 2),
    Document("b", (11, 12, 13), 1),
    Document("c", tuple(range(20, 31)), 4),
]


def louder(model: Any, by: float = 4.0) -> Any:
    """The same with weights so large that predictions differ."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(by)
    return model.requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def teacher() -> Any:
    return louder(llama(), 5.0)


@pytest.fixture(scope="module")
def student() -> Any:
    return louder(llama(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=1)).train()


def outputs(model: Any, doc: Document) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([doc.ids]), output_hidden_states=True)


def soft(model: Any, doc: Document, temperature: float, tokens: int = 96) -> torch.Tensor:
    """Log-probabilities, a document alone, float64."""
    found = outputs(model, doc).logits[0, doc.start - 1 : -1, :tokens].double()
    return (found / temperature).log_softmax(-1)


@pytest.mark.parametrize("layout", [PACKED, PADDED], ids=lambda layout: layout.kind)
@pytest.mark.parametrize("mix", [(1.0, 1.0, 96), (2.0, 0.5, 96), (4.0, 0.9, 90), (3.0, 0.0, 96)])
def test_the_loss_is_the_mix_of_both_parts(
    teacher: Any, student: Any, layout: Layout, mix: tuple[float, float, int]
) -> None:
    temperature, weight, tokens = mix
    objective = Distillation(layout, Teacher(teacher, layout, tokens), temperature, weight)
    found = objective.losses(student, DOCS)
    assert found.dtype == torch.float32
    wanted = []
    for doc in DOCS:
        p, q = soft(teacher, doc, temperature, tokens), soft(student, doc, temperature, tokens)
        kl = (p.exp() * (p - q)).sum(-1)
        nll = -soft(student, doc, 1.0)[torch.arange(doc.scored), torch.tensor(doc.ids[doc.start :])]
        wanted.append(weight * temperature**2 * kl + (1 - weight) * nll)
    assert found.shape == (sum(doc.scored for doc in DOCS),)
    torch.testing.assert_close(found.double(), torch.cat(wanted), atol=2e-5, rtol=2e-5)


def test_the_gradient_keeps_its_size_whatever_the_temperature(teacher: Any) -> None:
    """By far from a uniform guess it would not; near one, T² makes up for the softening (Hinton et al. 2015, eq. 4)."""
    sizes = []
    for temperature in (20.0, 40.0):
        model = llama(num_hidden_layers=1).requires_grad_()
        Distillation(PACKED, Teacher(teacher, PACKED, 96), temperature, 1.0).losses(model, DOCS).sum().backward()
        sizes.append(math.sqrt(sum(float(weight.grad.square().sum()) for weight in model.parameters())))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher: Any) -> None:
    model = copy.deepcopy(teacher).requires_grad_()
    objective = Distillation(PACKED, Teacher(teacher, PACKED, 96), 2.0, 1.0, hidden_weight=1.0)
    losses = objective.losses(model, DOCS)
    assert float(losses.detach().abs().max()) < 1e-6
    losses.sum().backward()
    assert max(float(weight.grad.abs().max()) for weight in model.parameters()) < 1e-4
    other = louder(llama(num_hidden_layers=1)).requires_grad_()
    objective.losses(other, DOCS).sum().backward()
    assert max(float(weight.grad.abs().max()) for weight in other.parameters()) > 1e-2


def test_the_teacher_gets_no_gradient_and_each_may_be_laid_out_in_its_own_way(teacher: Any, student: Any) -> None:
    model = copy.deepcopy(student).requires_grad_()
    one = Distillation(PACKED, Teacher(teacher, PACKED, 96), 2.0, 0.5).losses(model, DOCS)
    other = Distillation(PACKED, Teacher(teacher, PADDED, 96), 2.0, 0.5).losses(model, DOCS)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    learning = copy.deepcopy(teacher).requires_grad_()
    Distillation(PACKED, Teacher(learning, PACKED, 96), 2.0, 0.5).losses(model, DOCS).sum().backward()
    assert all(weight.grad is None for weight in learning.parameters())


def test_hidden_states_are_compared_layer_by_layer(teacher: Any, student: Any) -> None:
    model = copy.deepcopy(student)
    distill.add_projection(model, teacher)
    matrix = model.get_submodule(distill.PROJECTION).weight
    assert matrix.shape == (32, 16)
    plain = Distillation(PACKED, Teacher(teacher, PACKED, 96), 2.0, 0.5)
    mixed = Distillation(PACKED, Teacher(teacher, PACKED, 96), 2.0, 0.5, hidden_weight=0.7)
    found = (mixed.losses(model, DOCS) - plain.losses(model, DOCS)) / 0.7
    wanted = []
    for doc in DOCS:
        mine, theirs = (outputs(one, doc).hidden_states[-1][0, doc.start - 1 : -1].double() for one in (model, teacher))
        wanted.append((mine @ matrix.double().T - theirs).square().sum(-1) / theirs.square().sum(-1))
    torch.testing.assert_close(found.double(), torch.cat(wanted), atol=1e-4, rtol=1e-4)
    distill.drop_projection(model)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in student.named_parameters()]


def test_layers_are_paired_evenly_and_the_last_with_the_last() -> None:
    assert distill.pairs(2, 2) == [(1, 1), (2, 2)]
    assert distill.pairs(3, 12) == [(1, 4), (2, 8), (3, 12)]
    assert distill.pairs(4, 6) == [(1, 2), (2, 3), (3, 4), (4, 6)]
    assert distill.pairs(6, 2)[-1] == (6, 2)
    assert all(1 <= theirs <= 5 for _, theirs in distill.pairs(24, 5))


def test_equal_widths_need_no_projection(teacher: Any) -> None:
    model = llama(num_hidden_layers=1)
    distill.add_projection(model, teacher)
    assert not hasattr(model, distill.PROJECTION)
    distill.drop_projection(model)


def test_how_far_a_model_is_from_its_teacher_is_measured_without_temperature(teacher: Any, student: Any) -> None:
    found = ToTeacher(PACKED, Teacher(teacher, PACKED, 96)).losses(student, DOCS)
    parts = [
        (p.exp() * (p - q)).sum(-1) for p, q in ((soft(teacher, doc, 1.0), soft(student, doc, 1.0)) for doc in DOCS)
    ]
    torch.testing.assert_close(found.double(), torch.cat(parts), atol=2e-5, rtol=2e-5)


def test_who_knows_nothing_stays_below_what_the_guard_allows(teacher: Any) -> None:
    model = llama(num_hidden_layers=1)
    for temperature, weight, hidden in ((1.0, 1.0, 0.0), (4.0, 0.5, 0.0), (2.0, 0.5, 3.0)):
        objective = Distillation(PACKED, Teacher(teacher, PACKED, 96), temperature, weight, hidden)
        with torch.no_grad():
            assert float(objective.losses(model, DOCS).mean()) < 2 * objective.chance(model)
    assert next_token.chance(model) == pytest.approx(math.log(96))
