"""Every key of a configuration, with its default and meaning. Experiments start from here and show only what they change:

    from easydict import EasyDict as edict
    from configs.base import config as base
    config = edict(base, network="r50", rec="/data/vgg2")

Any key can also be given on the command line: `python train.py configs/vgg2_r34_qg rec=/data/vgg2 lr=0.1`.
"""

from easydict import EasyDict as edict

config = edict()

# --- data -----------------------------------------------------------------------------------------------------------
config.rec = ""  # folder with train.rec / train.idx (or many shards), or one .rec file
config.num_classes = 0  # identities; 0 takes the data set's own count
config.num_image = 0  # images; 0 takes the data set's own count, another number is checked against it
config.shuffle = "full"  # "full": a permutation of the whole set each epoch; "windowed": for slow disks and sets beyond
# memory, large sequential reads mixed in a window; "none": in order
config.shuffle_window = 131072  # images that "windowed" mixes at a time, over all ranks: keep twice as many in free memory
config.on_error = "stop"  # a damaged record stops the run, naming file, key and offset; "skip": it is left out of the step,
# counted, and listed in OUTPUT/skipped.txt
config.num_workers = 2  # loader processes a rank; 0 decodes in the training process
config.channel_order = "RGB"  # of the images that the encoder sees: RGB (arcface_torch) or BGR (AdaFace's releases)
config.views = 2  # 2: augmented (q) and original (k) of every image; 1: the augmented one alone
config.augmentation = "qgface"  # of view q: "qgface", "adaface", "none" (flip only)

# --- encoder --------------------------------------------------------------------------------------------------------
config.network = "r34"  # a name of backbones/: r18..r200, ir_18..ir_101, mbf, vit_*, and tiny, small for CPUs
config.embedding_size = 512  # D
config.dropout = 0.0
config.map_norm = False  # features have the norm of the last map instead of their own: after short training on small data it
# measures quality far better (docs/EXPERIMENTS.md); r18..r200, ir_18..ir_101, tiny, small
config.init_from = ""  # start the encoder from released weights, a run folder or a checkpoint folder (the head is new)
config.sync_bn = False  # BatchNorm statistics over all ranks
config.channels_last = True  # memory layout of the encoder
config.compile = False  # torch.compile the encoder
config.precision = "auto"  # of the encoder: fp32, bf16, fp16; auto: bf16 where the hardware has it, else fp32

# --- quality and losses (equations of the paper) --------------------------------------------------------------------
config.quality_concentration = 0.333  # c (eq. 1)
config.quality_rate = 0.01  # of the moving statistics
config.quality_mean = 20.0  # mu at the start
config.quality_std = 100.0  # sigma at the start
config.partition = "norm"  # what is of low quality: a feature of small norm, as in the paper; "views": every augmented view (a
# control: the partition that a perfect measure of quality would make)
config.quality_threshold = 0.2  # b (eqs. 2-5); None: no partition, everything learns from both losses
config.margin = "adaface"  # "adaface", "arcface", "cosface", "combined" with margin_list, "magface", or "curricularface",
# which alone also changes the logits of other classes and is slower
config.margin_m = 0.4  # m of adaface, arcface, cosface, curricularface
config.margin_list = (1.0, 0.5, 0.0)  # m1, m2, m3 of s (cos(m1 theta + m2) - m3)
config.magface = (10.0, 110.0, 0.45, 0.8, 35.0)  # l_a, u_a, l_m, u_m, lambda_g of magface
config.scale = 64.0  # s
config.head_precision = "fp32"  # of the products of classifier and queue; "bf16": sums and all else stay fp32
config.sample_rate = 1.0  # part of the classes that a step compares with, 0.1 to 1 (partial FC)
config.interclass_filtering_threshold = 0.0  # negatives with a larger cosine are left out, as the same person; 0: none
config.queue = "proxy"  # negatives of the contrastive loss: "proxy", "batch" (this step's features), "momentum"
# (features of a slowly following encoder, MoCo's, which also gives the positives), "none" (no such loss)
config.queue_size = 0  # Q; 0: num_classes
config.queue_momentum = 0.999  # m of the momentum encoder: its weights <- m its weights + (1 - m) the encoder's, each step
config.contrastive_weight = 1.0  # lambda
config.contrastive_scale = 64.0
config.contrastive_denominator = "paper"  # eq. 14 as printed (negatives alone), or "infonce" (and the positive)
config.contrastive_stop_gradient = True  # the sharp twin is a target that does not move towards the query
config.loss_average = "all"  # sums over the selected are divided by the number of all features (pairs), as in the paper;
# "selected": by the number of the selected
config.partition_warmup_epoch = 0.0  # epochs at the start in which everything is classified and nothing contrasted

# --- optimisation ---------------------------------------------------------------------------------------------------
config.batch_size = 128  # images a rank a step (two views each)
config.global_batch_size = 0  # if given: images a step over ALL ranks, instead of batch_size
config.gradient_acc = 1  # batches a step; gradients are averaged over them
config.num_epoch = 12
config.max_steps = 0  # stop after so many steps (0: at the end); the schedule stays that of num_epoch
config.optimizer = "sgd"  # or "adamw"
config.lr = 0.2
config.momentum = 0.9
config.weight_decay = 5e-4  # not on BatchNorm
config.schedule = "multistep"  # "multistep" (/10 at milestones), "polynomial" (power 2), "cosine"; by step, after warm-up
config.milestones = (6, 9)  # epochs
config.warmup_epoch = 0.0  # epochs of linear warm-up
config.max_grad_norm = 0.0  # clip the norm of all gradients together, over all ranks; 0: no clipping, as in the paper
config.max_skipped = 10  # steps in a row with a non-finite loss or gradient before the run stops
config.seed = 2048

# --- output ---------------------------------------------------------------------------------------------------------
config.output = ""  # run folder; empty: runs/<name of the configuration file>
config.val_targets = ()  # verification sets: names of .bin files in val_dir, or paths
config.val_dir = ""  # empty: the folder of rec
config.val_batch_size = 128
config.frequent = 10  # steps between two lines of progress
config.diagnose_every = 100  # steps between two looks at norms by view and at the queue's drift; 0: never. They change nothing
# in the training; one costs about a third of a step, and pictures for TensorBoard, at most one in ten looks, half a second
config.verbose = 0  # steps between two verifications; 0: at the end of each epoch
config.save_every = 0  # steps between two checkpoints; 0: at the end of each epoch, unless save_minutes is given
config.save_minutes = 0.0  # also (or instead of each epoch) when so much time has passed since the last checkpoint; 0: never
config.keep_last = 3  # checkpoints kept
config.keep_best = ""  # "lfw/accuracy": the best checkpoint by that figure of that set is kept too, as checkpoints/best
config.async_save = False  # checkpoints are written while training goes on, from a copy of the state in host memory
config.resume = True  # go on from the newest checkpoint in output, if there is one
config.timeout_minutes = 10.0  # how long a rank waits for another one before the run is given up, naming it
