"""References of the methods that an audit used."""

from purify_audit.report.schema import Citation
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.card import DiffusionCard, PurifierCard, TransformCard

_ALWAYS = {
    "compression rate, aligned randomness": (
        'Y. Liu and X.-X. Wei, "How Do Diffusion Models Improve Adversarial Robustness?",'
        " arXiv:2505.22839, 2025"
    ),
    "addressed randomness": (
        'J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy'
        ' as 1, 2, 3", SC 2011'
    ),
}
_SAMPLERS = {
    "ddpm": 'J. Ho, A. Jain and P. Abbeel, "Denoising diffusion probabilistic models", 2020',
    "ddim": 'J. Song, C. Meng and S. Ermon, "Denoising diffusion implicit models", ICLR 2021',
    "vp-sde": 'W. Nie et al., "Diffusion models for adversarial purification", ICML 2022',
    "vp-ode": 'Y. Song et al., "Score-based generative modeling through SDEs", ICLR 2021',
    "one-step": 'N. Carlini et al., "(Certified!!) adversarial robustness for free!", ICLR 2023',
}
_TRANSFORMS = {
    "bit-depth": 'W. Xu, D. Evans and Y. Qi, "Feature squeezing", NDSS 2018',
    "median": 'W. Xu, D. Evans and Y. Qi, "Feature squeezing", NDSS 2018',
    "jpeg": (
        'G. K. Dziugaite, Z. Ghahramani and D. M. Roy, "A study of the effect of JPG compression'
        ' on adversarial images", arXiv:1608.00853, 2016'
    ),
    "gaussian-noise": (
        'J. Cohen, E. Rosenfeld and Z. Kolter, "Certified adversarial robustness via randomized'
        ' smoothing", ICML 2019'
    ),
}
_PROBES = {
    "lowfreq": (
        'C. Guo, J. S. Frank and K. Q. Weinberger, "Low frequency adversarial perturbation",'
        " UAI 2019"
    ),
}

_ATTACK = {
    "expectation over transformation, BPDA": (
        'A. Athalye, N. Carlini and D. Wagner, "Obfuscated gradients give a false sense of'
        ' security", ICML 2018'
    ),
    "checks of the attack": 'N. Carlini et al., "On evaluating adversarial robustness", 2019',
    "Square Attack": (
        "M. Andriushchenko, F. Croce, N. Flammarion and M. Hein,"
        ' "Square Attack: a query-efficient black-box adversarial attack via random search",'
        " ECCV 2020"
    ),
    "interval of a paired difference": (
        'D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of'
        ' binomial proportions based on paired data", 2012'
    ),
}
_OPTIMISERS = {
    "portfolio": (
        'S. Gowal et al., "An alternative surrogate loss for PGD-based adversarial testing",'
        ' arXiv 1910.09338; F. Croce and M. Hein, "Reliable evaluation of adversarial robustness'
        ' with an ensemble of diverse parameter-free attacks", ICML 2020'
    ),
    "pgd": (
        'A. Madry et al., "Towards deep learning models resistant to adversarial attacks",'
        " ICLR 2018"
    ),
    "apgd": (
        'F. Croce and M. Hein, "Reliable evaluation of adversarial robustness with an ensemble of'
        ' diverse parameter-free attacks", ICML 2020'
    ),
}


def citations(card: PurifierCard, plan: AuditPlan) -> tuple[Citation, ...]:
    """References for one audit, in a fixed order."""
    used = dict(_ALWAYS)
    if isinstance(card, DiffusionCard):
        used[f"sampler {card.sampler.kind}"] = _SAMPLERS[card.sampler.kind]
    if isinstance(card, TransformCard) and card.transform.kind in _TRANSFORMS:
        used[f"transformation {card.transform.kind}"] = _TRANSFORMS[card.transform.kind]
    for probe in plan.probes:
        if probe.kind in _PROBES:
            used[f"probe {probe.kind}"] = _PROBES[probe.kind]
    if plan.classifier is not None:
        used["interval of an accuracy"] = (
            'C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits",'
            " Biometrika 26, 1934"
        )
    if plan.attack is not None:
        used |= _ATTACK
        if plan.attack.optimiser in _OPTIMISERS:
            used[f"attack {plan.attack.optimiser}"] = _OPTIMISERS[plan.attack.optimiser]
    return tuple(Citation(used_for=use, reference=text) for use, text in used.items())
