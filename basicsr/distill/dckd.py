"""DCKD (Zhou et al., Dynamic Contrastive Knowledge Distillation for Efficient Image Restoration, AAAI 2025).

    L = L_rec + L_kd + 0.1 L_dcl + 0.001 L_ce

The first two, L1 against I_GT and I_T, are the options' `pixel_opt` and `resp_kd_opt`; the others are this term. Both
look through the frozen encoder of a VQGAN.

Dynamic contrastive regularisation (eqs. 4-6): in the features f_i of five layers the student's image I_S is to lie near
the teacher's I_T and far from N negatives, images that an earlier state of the student makes of degraded inputs:

    I_j = F_his(D_j(I_LR))
    L_dcl = mean over the batch of sum_i lambda_i d(f_i(I_S), f_i(I_T)) / (sum_j d(f_i(I_S), f_i(I_j)) + 1e-7)

with d the mean absolute difference over one image's channels and positions. The history model is updated after each
iteration t that s divides, by theta_his = a theta_his + (1 - a) theta_student; a = 0.1 is what it keeps of its own. The
step s is 1000 in iterations 1 to 100000, 2000 in 100001 to 200000, 3000 from then on.

Distribution mapping (eqs. 7-9): at each position of the encoder's latent F the codebook's entries e_m are categories,

    C = softmax over m of -||F - e_m||^2,  L_ce = mean over positions and batch of -sum_m C^T_m log C^S_m

Eq. 8 is printed without the minus sign, by which the entry farthest from F would be the likeliest; the published code
has it, as here. The paper names no norm for eq. 5; the published code takes absolute differences. Where it is otherwise
(`options/methods/dckd_as_published.yml` sets all that are options):

- It gives images in [0, 1] to an encoder that was trained on [-1, 1]; `input_range: [0, 1]` does so here.
- It takes the cross-entropy of probabilities as if they were logits, a softmax of a softmax, and so between nearly even
  distributions; `double_softmax` does so here.
- Its N negatives are N - 1 of degraded inputs and one of the input as it is; `include_undegraded` does so here.
- It divides means over the batch by each other (`quotient: batch`); here each image has its own quotient.
- Its history model follows the student's moving average (`history_of: average`), where the paper has the student, and
  starts anew from it when a run is resumed; here it is in the training state.
- Its schedule has periods of 100000 iterations and fails after the last; here `period` is an option, and the last step
  stays.
- It blurs along an image's axes only, and blurs or resizes a whole batch alike.
- Its options, which are for SwinIR, add label consistency on the teacher's input: `LabelConsistency`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from basicsr.archs.frozen import Frozen
from basicsr.archs.vqgan_arch import VQGANEncoder, category_log_probabilities
from basicsr.distill.base import LossTerm, StepContext
from basicsr.distill.degradations import Degradation, degrade
from basicsr.distill.distances import Others, summed_distances
from basicsr.distill.networks import NetworkPair
from basicsr.losses.loss_util import at_least_float32, check_images_for
from basicsr.utils.errors import OptionsError
from basicsr.utils.ranges import Iterations, Label, Probability, Weight
from basicsr.utils.registry import METHOD_REGISTRY
from basicsr.utils.signatures import Conflict, Misfit, check_arguments

LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
EPSILON = 1e-7
_UPDATE_STEPS = (1000, 2000, 3000)


@METHOD_REGISTRY.register()
class DCKD(LossTerm):
    """L_dcl and L_ce; see the file's head for the equations. For any two networks, at any scale, 1 among them.

    The history model is a copy of the student as it is before training. It is saved in the training state, is no part
    of the exported student, and always in eval mode. Each image's degradations derive from its own seed.

    Under `amp` the encoder runs in the shorter format, and nearly equal images have features that differ little: with
    random weights and a student 46 dB from its teacher (54 dB), the gradient of L_dcl kept a cosine of 0.90 (0.72) with
    float32's in bf16, of 0.98 and more in fp16.

    Args:
        contrastive: whether there is L_dcl. Without it there is no history model.
        distribution: whether there is L_ce.
        dcl_weight: weight of L_dcl.
        ce_weight: weight of L_ce.
        num_negatives: N.
        degradation: 'noise', 'blur', 'resize' or 'mix'; see `degrade`.
        include_undegraded: whether one of the N is made of the input as it is.
        layer_weights: lambda_i, from the highest resolution to the lowest.
        attenuation: a.
        update_steps: s, in iterations, of one period after the other; the last one stays.
        period: after how many iterations the next of `update_steps` holds.
        input_range: what 0 and 1 become before the encoder.
        quotient: eq. 5's, of each 'image' by itself, or of means over the 'batch' of one process.
        double_softmax: whether L_ce takes the student's probabilities as if they were logits.
        history_of: whether the history model follows the 'student' or the moving 'average' of its weights, which
            needs `train: ema_decay`.
        vqgan_weights: see `VQGANEncoder`.

    Raises:
        OptionsError: an option is none of these.
        CheckpointError: the VQGAN's weights cannot be had.
    """

    batch_scope = "image"
    teacher_needs = ""
    history: nn.Module | None

    def __init__(
        self,
        *,
        contrastive: bool = True,
        distribution: bool = True,
        dcl_weight: Weight = 0.1,
        ce_weight: Weight = 0.001,
        num_negatives: Others = 5,
        degradation: Degradation = "noise",
        include_undegraded: bool = False,
        layer_weights: Sequence[Weight] = LAYER_WEIGHTS,
        attenuation: Probability = 0.1,
        update_steps: Sequence[Iterations] = _UPDATE_STEPS,
        period: Iterations = 100_000,
        input_range: tuple[Label, Label] = (-1.0, 1.0),
        quotient: Literal["image", "batch"] = "image",
        double_softmax: bool = False,
        history_of: Literal["student", "average"] = "student",
        vqgan_weights: str | None = None,
    ) -> None:
        check_arguments(DCKD, locals())
        super().__init__()
        self.contrastive, self.distribution = contrastive, distribution
        self.num_negatives, self.include_undegraded = num_negatives, include_undegraded
        self.degradation: Degradation = degradation
        self.layer_weights = tuple(layer_weights)
        self.attenuation = attenuation
        self.quotient, self.double_softmax = quotient, double_softmax
        self.needs_average = contrastive and history_of == "average"
        self.update_steps, self.period = tuple(update_steps), period
        self.weights = {"l_dcl": dcl_weight} if contrastive else {}
        if distribution:
            self.weights["l_ce"] = ce_weight
        self.history = None
        self.vqgan = Frozen(VQGANEncoder(vqgan_weights=vqgan_weights, input_range=input_range))
        layers = len(self.vqgan.network.sizes.ch_mult)
        if len(self.layer_weights) != layers:
            raise OptionsError(
                f"DCKD: layer_weights has {len(self.layer_weights)} entries, the VQGAN {layers} layers; give each one"
            )

    @staticmethod
    def conflicts(
        contrastive: bool, distribution: bool, update_steps: Sequence[int], input_range: tuple[float, float]
    ) -> Iterator[Conflict]:
        """See `basicsr.utils.signatures.find_problems`."""
        if not (contrastive or distribution):
            yield "contrastive", "is false, as is distribution; turn one on, or leave the method out"
        if not update_steps:
            yield "update_steps", "is [], allowed: one or more, each from 1"
        if not input_range[0] < input_range[1]:
            yield "input_range", f"is {list(input_range)}; allowed: the lower and the upper end, as [-1, 1]"

    @staticmethod
    def misfits(contrastive: bool, update_steps: Sequence[int], period: int, total_iter: int) -> Iterator[Misfit]:
        """See `basicsr.utils.signatures.find_misfits`."""
        if contrastive and update_steps[0] > total_iter:
            yield Misfit(
                "update_steps",
                f"begins with {update_steps[0]}, but total_iter is {total_iter}: the history model stays as it began",
            )
        periods = math.ceil(total_iter / period)
        if contrastive and periods < len(update_steps) and tuple(update_steps) != _UPDATE_STEPS:
            yield Misfit(
                "update_steps",
                f"has {len(update_steps)} entries, but total_iter {total_iter} has {periods} periods of {period}: the"
                " last ones are not reached",
            )

    def attach(self, networks: NetworkPair) -> None:
        """Copies the student, as the first state of the history model."""
        if self.contrastive:
            self.history = copy.deepcopy(networks.student.network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DCKD:
        """As ever, but for the history model, which stays in eval mode."""
        super().train(mode)
        if self.history is not None:
            self.history.eval()
        return self

    def update_step(self, iteration: int) -> int:
        """s in `iteration`, from 1."""
        return self.update_steps[min((iteration - 1) // self.period, len(self.update_steps) - 1)]

    def after_update(self, student: nn.Module, iteration: int) -> None:
        """Takes the history model towards the student where it is time for it."""
        if not self.needs_average:
            self._follow(student, iteration)

    def after_average(self, average: nn.Module, iteration: int) -> None:
        """Takes the history model towards the student's moving average where it is time for it."""
        if self.needs_average:
            self._follow(average, iteration)

    @torch.no_grad()
    def _follow(self, student: nn.Module, iteration: int) -> None:
        """One step of eq. 6. Buffers are copied as they are."""
        if self.history is None or iteration % self.update_step(iteration):
            return
        for own, new in zip(self.history.parameters(), student.parameters(), strict=True):
            own.lerp_(new, 1 - self.attenuation)
        for buffer, present in zip(self.history.buffers(), student.buffers(), strict=True):
            buffer.copy_(present)

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_dcl` and `l_ce`, those that are on.

        Raises:
            OptionsError: the images are neither gray nor in colour, or too small for the VQGAN or the degradation.
        """
        self.check_output(tuple(context.sr.shape[1:]))
        student, student_latent = self._encoded(context, context.sr, self.distribution)
        with torch.no_grad():
            teacher, teacher_latent = self._encoded(context, context.teacher_output, self.distribution)
        parts = {}
        if self.contrastive:
            parts["l_dcl"] = self._contrast(context, student, teacher)
        if student_latent is not None and teacher_latent is not None:
            parts["l_ce"] = self._cross_entropy(student_latent, teacher_latent)
        return parts

    def check_output(self, shape: Sequence[int]) -> None:
        """See `LossTerm`."""
        check_images_for("DCKD", "VQGAN", shape, self.vqgan.network.factor)

    def _encoded(
        self, context: StepContext, images: torch.Tensor, with_latent: bool
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        with context.autocast():
            features, latent = self.vqgan(images, with_latent=with_latent)
        return features, latent

    def _contrast(
        self, context: StepContext, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """L_dcl by the features of I_S and of I_T."""
        near = summed_distances(student, [teacher])
        far = summed_distances(student, (self._encoded(context, one, False)[0] for one in self._negatives(context)))
        total = torch.zeros_like(near[0])
        if self.quotient == "batch":
            near, far = ([distances.mean(0, keepdim=True) for distances in each] for each in (near, far))
            total = total[:1]
        for weight, apart, aside in zip(self.layer_weights, near, far, strict=True):
            total = total + weight * apart / (aside + EPSILON)
        return total.mean()

    @torch.no_grad()
    def _negatives(self, context: StepContext) -> Iterator[torch.Tensor]:
        """I_1 to I_N, each (B, 3, sH, sW), one by one, so that one at a time is in memory."""
        assert self.history is not None
        for number in range(1, self.num_negatives + 1):
            lq = context.lq
            if number > 1 or not self.include_undegraded:
                lq = self._degraded(context, number)
            with context.autocast():
                image = at_least_float32(self.history(lq))
            yield image

    def _degraded(self, context: StepContext, number: int) -> torch.Tensor:
        try:
            return degrade(context.lq, self.degradation, context.generators(f"DCKD negative {number}"))
        except OptionsError as error:
            raise OptionsError(f"DCKD: {error}") from error

    def _cross_entropy(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """L_ce by the latents of I_S and of I_T."""
        codebook = self.vqgan.network.codebook
        target = category_log_probabilities(teacher, codebook).exp()
        own = category_log_probabilities(student, codebook)
        if self.double_softmax:
            own = F.log_softmax(own.exp(), dim=1)
        return -(target * own).sum(1).mean()
