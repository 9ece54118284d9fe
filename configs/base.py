"""Every configuration key with its default and its meaning. An experiment starts from here and lists only what it changes:

    from easydict import EasyDict as edict
    from configs.base import config as base
    config = edict(base, network="r50", rec="/data/vgg2")

Any key can also be set on the command line: `python train.py configs/vgg2_r34_qg rec=/data/vgg2 lr=0.1`. Types and ranges are
in utils/config/schema.py. "eq." and "table" refer to the QGFace paper. A step is one update of the weights.
"""

from easydict import EasyDict as edict

config = edict()

# --- data -----------------------------------------------------------------------------------------------------------
# Folder with train.rec and train.idx, or with several *.rec shards; or one .rec file. Without packing: a folder with one
# subfolder of 112x112 images per identity, or a .txt list with `path label` per line. Several at once: ("ms1m", "mine").
# "synthetic": random images and labels, to measure a machine without data; num_classes and num_image set the sizes.
config.rec = ""
# With several sets, how often an epoch visits the images of each: 0.5 is a random half, another one each epoch; 2 is twice.
# (): once each.
config.rec_proportions = ()
# With several sets, how the identities of each relate to those of the others (one entry per set, or one for all). "separate":
# other people; "overlapping": possibly the same people, which are then never negatives for each other; "by_name": the same person
# if the names are equal; or a CSV file with the columns label,name. (): separate.
config.rec_identities = ()
config.num_classes = 0  # number of identities; 0: as many as the data set has
config.num_image = 0  # number of images; 0: as many as the data set has; any other number must match the data set
# Faces without identities: a flat folder of 112x112 images, a .rec file, or a folder of *.rec. They are never classified: their
# augmented view is contrasted with the original, whatever its quality, and both views are negatives in the queue. "": none.
config.unlabelled = ""
config.unlabelled_share = 0.25  # share of each batch (over all ranks) that is unlabelled, if there are such images
# Order of the images. "full": a new permutation of the whole set every epoch; "windowed": large sequential reads, shuffled
# within a window, for slow disks and sets larger than memory; "none": as stored.
config.shuffle = "full"
# Images that "windowed" shuffles at a time, over all ranks. Twice as many must fit into free memory.
config.shuffle_window = 131072
# What a damaged record does. "stop": end the run, with file, key and byte offset; "skip": leave the record out, count it, and
# list it in OUTPUT/skipped.txt.
config.on_error = "stop"
config.num_workers = 2  # loader processes per rank, each good for about 1,000 images/s; 0: decode in the training process
config.channel_order = "RGB"  # of the encoder's input: "RGB" (arcface_torch) or "BGR" (AdaFace's released weights)
config.views = 2  # 2: an augmented (q) and an original (k) view of each image; 1: the augmented view only
config.augmentation = "qgface"  # of view q: "qgface", "adaface", "chain", "none" (flip only), or a plug-in (see network)
# Probability with which view q takes the colours (mean and covariance of the pixels) of another training image before its
# augmentation. 0.5 improves the recognition of faces from unknown cameras (docs/EXPERIMENTS.md). It is not in the paper.
config.colour_transfer = 0.0
# Probabilities and ranges of the augmentation, such as {"scale": (0.05, 0.5)}: the keyword arguments of its function in
# recognition/data/augment.py, which has the defaults; or those of a plug-in.
config.augmentation_options = {}

# --- encoder --------------------------------------------------------------------------------------------------------
# A name as below; or code outside the repository, "my.module:build" (docs/EXTENDING.md); or an encoder of timm, "timm:NAME".
config.network = "r34"  # r18 … r2060, ir_18 … ir_101, mbf, vit_t … vit_h; for CPUs: tiny, small (see backbones/)
config.network_options = {}  # further keyword arguments of the network's constructor, such as {"width": 64}
config.embedding_size = 512  # dimension of the features
config.dropout = 0.0  # probability of dropout before the last linear layer
# Stochastic depth of vit_*: rate at the last block, from 0 at the first. None: the network's own (0.1; 0.05 in vit_*_dp005_*).
config.drop_path = None
# Share of the image's tokens that each training step leaves out; None: the network's own. For vit_*.
config.mask_ratio = None
# Give each feature the norm of the last feature map instead of its own. After a short training on little data that norm
# measures quality much better (docs/EXPERIMENTS.md). For r18 … r2060, ir_18 … ir_101, tiny, small.
config.map_norm = False
config.init_from = ""  # initial encoder: released weights, a run folder, or a checkpoint folder
# Initial classifier, with init_from. "new": random; "means": the class means of the initial encoder's features, which needs one
# pass over the images; "kept": the classifier of the run or checkpoint, of as many classes.
config.head_from = "new"
# Parameters of the encoder that are not trained: shell-style patterns of their names, such as ("conv1*", "bn1*", "layer1.*"). A
# BatchNorm that matches normalises with its running statistics and keeps them.
config.freeze = ()
# LoRA: train low-rank updates of the encoder's linear and convolution layers, and nothing else of it. Its rank; 0: no LoRA.
config.lora_rank = 0
config.lora_alpha = 16.0  # alpha of LoRA: the updates are multiplied by alpha / rank
config.sync_bn = False  # compute BatchNorm statistics over all ranks
config.channels_last = True  # store the encoder's tensors channels last, which is faster
config.compile = False  # compile the encoder with torch.compile
# Recompute the activations inside each block in the backward pass: the same gradients with less memory, for about a third more
# time. For r18 … r2060, ir_18 … ir_101, vit_*.
config.gradient_checkpointing = False
# "fsdp": divide the encoder's weights, gradients and optimiser state over the ranks (PyTorch's FSDP2), for encoders that are too
# large for one GPU; see docs/SCALING.md. "none": each rank holds all of them (DDP).
config.encoder_sharding = "none"
config.precision = "auto"  # of the encoder: "fp32", "bf16", "fp16"; "auto": bf16 if the hardware supports it, else fp32

# --- quality and losses ---------------------------------------------------------------------------------------------
config.quality_concentration = 0.333  # c (eq. 1)
config.quality_rate = 0.01  # rate of the moving mean and standard deviation of the feature norms
config.quality_mean = 20.0  # initial mean, mu
config.quality_std = 100.0  # initial standard deviation, sigma
# What counts as low quality. "norm": features with a small norm, as in the paper. Controls: "views": every augmented view (the
# partition that a perfect quality measure would make); "scale": the augmented views with the smallest scale, of which
# quality_threshold is the share. Or a plug-in.
config.partition = "norm"
config.partition_options = {}  # keyword arguments of such a plug-in
config.quality_threshold = 0.2  # b (eqs. 2-5); None: no partition, both losses use all data
# Margin of the classification loss: "adaface", "arcface", "cosface", "magface", "curricularface", or "combined" (margin_list).
# "curricularface" also changes the logits of the other classes and is slower. Or a plug-in.
config.margin = "adaface"
config.margin_options = {}  # keyword arguments of such a plug-in
config.margin_m = None  # m; None: 0.4 for adaface and cosface, 0.5 for arcface and curricularface
config.margin_list = None  # m1, m2, m3 of "combined": s (cos(m1 theta + m2) - m3); None: (1.0, 0.5, 0.0)
# Gradient of the margin of "arcface", and of "combined" with m1 = 1 and m3 = 0. "exact": the derivative; "straight_through": the
# target cosine's gradient passes as if there were no margin, as in arcface_torch.
config.margin_gradient = "exact"
config.magface = (10.0, 110.0, 0.45, 0.8, 35.0)  # l_a, u_a, l_m, u_m, lambda_g of magface
config.scale = 64.0  # s of the classification loss
# Of matrix products in classifier and queue: "fp32"; "bf16"; "auto": bf16 if the encoder computes in bf16 and the hardware
# supports it. Sums are always fp32.
config.head_precision = "auto"
# The classifier's gradient. "stored": as a tensor as large as the classifier. "streamed": computed and applied in chunks, which
# saves that memory (docs/SCALING.md); the result is the same. SGD, all classes, one batch per step.
config.head_gradient = "stored"
# Share of the classes that each step draws to compare with, in addition to those of the batch (partial FC), in whole percent; 0:
# the classes of the batch alone.
config.sample_rate = 1.0
# Rows of the classifier that a step does not compare with. "kept": left as they are; "moved": weight decay and momentum move
# them, as in arcface_torch, which takes the time and memory of a full update.
config.unsampled_rows = "kept"
config.interclass_filtering_threshold = 0.0  # filter negatives with a larger cosine (label noise); 0: keep all
# What becomes of them. "dropped": left out of the sum over classes; "zeroed": their cosine is set to 0, as in arcface_torch.
config.filtered_negatives = "dropped"
# Negatives of the contrastive loss. "proxy": the paper's queue; "batch": the features of the current step; "momentum": a queue
# filled by a slowly following encoder, which also computes the positives (MoCo); "none": no contrastive loss.
config.queue = "proxy"
config.queue_size = 0  # entries in the queue, Q; 0: num_classes
config.queue_momentum = 0.999  # m of the momentum encoder: after each step, its weights = m its weights + (1 - m) the encoder's
# Views that the momentum encoder sees. "augmented": this one alone, and the encoder learns from originals only (section III-C);
# "both": both encoders see both views, as with the other queues.
config.momentum_views = "both"
config.contrastive_weight = 1.0  # lambda
config.contrastive_scale = 64.0  # s of the contrastive loss
config.contrastive_denominator = "paper"  # "paper": eq. 14 as printed, negatives only; "infonce": the positive as well
# The target of a pair, towards which the other view is pulled. "original": the original view; "better": the view with the larger
# norm; "symmetric": each view is the other one's target, the two losses are added, and gradients pass through targets.
config.contrastive_target = "original"
config.contrastive_stop_gradient = True  # no gradient through the target, unless "symmetric"
# What the sums over selected features and pairs are divided by. "all": the number of all features (pairs), as in the paper;
# "selected": the number of the selected ones.
config.loss_average = "all"
# Feature distillation: a run, a checkpoint, released weights or an .onnx whose feature of the original view is a target for both
# views, by their cosine. "": none.
config.teacher = ""
config.distillation_weight = 1.0  # of the distillation loss, if there is a teacher
config.partition_warmup_epoch = 0.0  # number of epochs at the start in which everything is classified and nothing contrasted

# --- optimisation ---------------------------------------------------------------------------------------------------
config.batch_size = 128  # images per rank per step (each in `views` views)
config.global_batch_size = 0  # images per step over all ranks; replaces batch_size unless 0
config.gradient_acc = 1  # batches per step
# How the gradients of a step's batches are combined: "mean", or "sum", as in arcface_torch.
config.accumulation = "mean"
config.num_epoch = 12  # number of epochs
config.max_steps = 0  # stop after this many steps (the schedule is still that of num_epoch); 0: after num_epoch
config.optimizer = "sgd"  # "sgd" or "adamw"
config.lr = 0.2  # learning rate after the warm-up
# Learning rate of each stage of the encoder relative to the next one, counted from the output layers and the classifier, which
# have the full rate. Stages: layer1 … layer4 of r*; otherwise each block; the stem. 1.0: the same rate for all.
config.layer_decay = 1.0
config.momentum = 0.9  # of SGD
config.weight_decay = 5e-4  # of all parameters but those of normalisation layers
config.decay_norms = False  # apply it to normalisation layers too, as arcface_torch does
config.schedule = "multistep"  # "multistep": lr / 10 from each milestone on; "polynomial"; "cosine"; all per step
config.polynomial_power = 2.0  # "polynomial": lr (1 - progress)^power, from the end of the warm-up on
config.milestones = (6, 9)  # epochs, for "multistep"
config.warmup_epoch = 0.0  # epochs of linear warm-up
# Decay of a moving average of the encoder's weights (EMA) that is verified too: after each step, average = ema * average +
# (1 - ema) * weights. 0: none.
config.ema = 0.0
config.max_grad_norm = 0.0  # clip the gradient's norm, over all ranks; 0: no clipping, as in the paper
# Whose gradient max_grad_norm limits: "all" parameters together; the "encoder" alone, as in arcface_torch (to 5).
config.clip = "all"
config.max_skipped = 10  # stop after this many steps in a row with a non-finite loss or gradient; such steps are not applied
config.seed = 2048  # of all random numbers

# --- output ---------------------------------------------------------------------------------------------------------
config.output = ""  # run folder; "": runs/NAME, where NAME is that of the configuration file
config.hooks = ()  # code that watches the run: ("my.module:Hook",); see docs/EXTENDING.md
# Where figures go besides metrics.jsonl: "tensorboard" (the run folder), "wandb", "mlflow" (if the package is installed).
config.trackers = ("tensorboard",)
config.tracker_options = {}  # such as {"wandb": {"project": "faces"}}: for wandb.init and mlflow.set_experiment
config.val_targets = ()  # verification sets: names of .bin files in val_dir, or paths
config.val_dir = ""  # "": the folder of rec
config.val_batch_size = 128  # images per rank per batch in verification
config.frequent = 10  # steps between two lines of progress
# Steps between two diagnostics of feature norms and queue drift; 0: never. They do not change the training. Each costs about a
# third of a step; at most every tenth one also draws pictures for TensorBoard, which takes half a second.
config.diagnose_every = 100
config.verbose = 0  # steps between two verifications; 0: at the end of each epoch, as verify_share allows
# With verbose=0, verification takes at most about this share of the run's time: at the end of an epoch it is left out if it would
# take more. The first one, and the one after the last step, are never left out.
config.verify_share = 0.2
config.save_every = 0  # steps between two checkpoints; 0: at the end of each epoch, or as save_minutes demands
config.save_minutes = 0.0  # save when this much time has passed since the last checkpoint; 0: never by time
config.keep_last = 3  # number of checkpoints that are kept
config.keep_best = ""  # such as "lfw/accuracy": also keep the checkpoint with the best such figure, as checkpoints/best
config.async_save = False  # write checkpoints while the training continues, from a copy of the state in host memory
config.resume = True  # continue from the newest checkpoint in the run folder, if there is one
config.timeout_minutes = 10.0  # give up, naming the rank, when one rank keeps the others waiting this long
