from __future__ import annotations
import torch
from exltune.engines.exllamav3.engine import ExllamaEngine
from exltune.testing.engines.oracle import whole_model, logits
from exltune.schema.mix import Mix, REFERENCE
from tests.standin.hook import install
install()
from tests.standin.pretend import cards

def test_a(tiny_moe, tmp_path):
    ids=[g.id for g in (*tiny_moe.inventory.groups,tiny_moe.inventory.head)]
    mix=Mix(name="a",choices=dict.fromkeys(ids,REFERENCE))
    T=torch.arange(60).view(3,20)
    print("before", logits(whole_model(tiny_moe,mix,tmp_path/"0"),T).sum())
    with cards(2):
        e=ExllamaEngine(tiny_moe.path,tiny_moe.quants,devices=[1]); e.score([mix],T); print("in0",logits(whole_model(tiny_moe,mix,tmp_path/"00"),T).sum())
        mod=whole_model(tiny_moe,mix,tmp_path/"1")
        print([n for n,p in mod.named_parameters() if not torch.isfinite(p).all()]+[n for n,p in mod.named_buffers() if not torch.isfinite(p).all()])
        print("in", logits(mod,T).sum())
    print("then", logits(mod,T).sum())
    with cards(2): print("in2", logits(mod,T).sum())
    print(torch.get_default_dtype(), torch.is_inference_mode_enabled())

def test_b(tiny_moe, tmp_path):
    from exltune.testing.engines.oracle import row_sums
    ids=[g.id for g in (*tiny_moe.inventory.groups,tiny_moe.inventory.head)]
    mix=Mix(name="a",choices=dict.fromkeys(ids,REFERENCE))
    two=Mix(name="a",choices=dict.fromkeys(ids,"2"))
    T=torch.randint(0,256,(6,20),generator=torch.Generator().manual_seed(1))
    for where in (1,0):
        from contextlib import nullcontext
        with cards(2) if where else nullcontext():
            if where:
                e=ExllamaEngine(tiny_moe.path,tiny_moe.quants,devices=[1])
                if where==1: e.score([two],T)
                if where==2: list(e.capture(T))
            for n,m in (("r",mix),("2",two)):
                mod=whole_model(tiny_moe,m,tmp_path/f"{where}{n}")
                print(n,[n for n,p in mod.named_parameters() if not torch.isfinite(p).all()]+[n for n,p in mod.named_buffers() if not torch.isfinite(p).all()], sum(p.double().abs().sum() for p in mod.parameters()))
                a=logits(mod,T); print(a.sum())
                if n=="r": r=a
            print(row_sums(r,a,T)["kl_ref_mix"])
