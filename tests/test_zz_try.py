import lightning as L
from mega_pl.data.datamodule import EditDataModule
from mega_pl.module import MegaModule
from mega_pl.callbacks import BankCheckpoint, ResultTable
import torch, os, time

class Stop(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1: raise RuntimeError("killed")

def tr(root, *cbs):
    return L.Trainer(max_epochs=1, num_sanity_val_steps=0, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", default_root_dir=root, callbacks=[BankCheckpoint(), *cbs], log_every_n_steps=1)
def test_x(roomy_folder, edits_file, tmp_path):
    f = str(roomy_folder("gpt2"))
    mk = lambda: (MegaModule(f, modes=["gate","oracle","forced"]), EditDataModule(edits=str(edits_file), edits_per_batch=2))
    m, d = mk()
    t0=time.time()
    tr(tmp_path/"a", ResultTable()).fit(m, datamodule=d)
    print("fit", time.time()-t0)
    m2, d2 = mk()
    try: tr(tmp_path/"b", Stop()).fit(m2, datamodule=d2)
    except RuntimeError as e: print(e)
    print(os.listdir(tmp_path/"b"), os.listdir(tmp_path/"a"), os.path.getsize(tmp_path/"a"/"last.ckpt"), os.path.getsize(roomy_folder("gpt2")/"model.safetensors"))
    print(torch.load(tmp_path/"b"/"last.ckpt", weights_only=True).keys())
    m3, d3 = mk()
    tr(tmp_path/"b").fit(m3, datamodule=d3, ckpt_path="last")
    print(len(m3.bank), m3.bank.ids, list(m.trainer.logged_metrics))
