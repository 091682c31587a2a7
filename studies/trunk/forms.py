"""The heads that the trunk study compares, and how they are trained."""

from dataclasses import asdict, dataclass

SETS = ("sentiment", "paradetox", "hh_helpful")
NATS = 5.0  # guidance KL at which `worth` is quoted


@dataclass(frozen=True)
class Fit:
    """A head and how it is trained; the defaults are the library's."""

    parts: str = "f+g"
    layers: tuple[int, ...] = (20,)
    rank: int = 16
    mlp: int = 0
    attention: int = 0
    lr: float = 1e-4
    epochs: int = 2
    objective: str = "prefix"
    pairs: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        return "-".join(f"{value}" for value in asdict(self).values()).replace(" ", "")


# Every set: what a head is made of. Sentiment alone, where guiding can be judged too: how it is trained.
EVERYWHERE = [
    Fit(),
    Fit(parts="f"),
    Fit(parts="g"),
    Fit(objective="sequence"),
    Fit(mlp=64),
    Fit(attention=64),
    Fit(layers=(8, 16, 24)),
    *(Fit(layers=(layer,)) for layer in (8, 30)),
    *(Fit(rank=rank) for rank in (4, 64)),
    Fit(pairs=300),
]
FORMS = [
    *EVERYWHERE,
    *(Fit(layers=(layer,)) for layer in (12, 16, 24)),
    Fit(rank=1),
    *(Fit(lr=lr) for lr in (3e-5, 3e-4, 1e-3)),
    Fit(epochs=4),
    *(Fit(pairs=pairs) for pairs in (600, 1200)),
]
GUIDES = (Fit(parts="f"), Fit())
