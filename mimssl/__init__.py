"Masked image modelling joined with momentum distillation and contrastive learning, exported from the notebooks in nbs/."
__version__ = "0.1.0"


def __getattr__(name):
    "`mimssl.load` reads any encoder; torch is imported only then."
    if name == "load":
        from mimssl.parts.formats import load
        return load
    raise AttributeError(f"module 'mimssl' has no attribute '{name}'")
