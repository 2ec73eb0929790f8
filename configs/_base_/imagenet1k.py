# ImageNet-1k at 224 px, 300 epochs, 8 GPUs of 128 images. Nothing is downloaded: put the images where
# data/imagenet/train/<class>/*.JPEG and data/imagenet/val/<class>/*.JPEG are read. Start it by
#   torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch
seed = 1
workers = 8
image_size = (224, 224)
source = dict(type="visionkit.ImageClasses", root="data/imagenet")

stages = dict(
    train=dict(
        type="visionkit.ClassificationStage", model=dict(num_classes=1000, mixup=0.8, cutmix=1.0, smoothing=0.1, bf16=True),
        batch_size=128, epochs=300, lr=1e-3, lr_batch=1024, warmup_lr=1e-6, weight_decay=0.05, report="ImageNet-1k",
    ),
)
