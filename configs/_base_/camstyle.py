# Stage 0 of CORE-ReID: one CycleGAN for every pair of the source's cameras, with the recipe of the released code.
# CUHK03-NP, which has one pair alone, was trained with batch_size=8. V2's vehicles go from the source's look to the
# target's with one CycleGAN: direction="AtoB", epochs=100, decay_epochs=100, batch_size=32, no dropout.
# images="FOLDER" takes <stem>_fake_<A>to<B>.jpg files made before and trains nothing.
stages = dict(
    camstyle=dict(
        type="visionkit.CamStyleStage",
        # the papers also style the source's test images, which spoils its own scores; the stage that trains on the
        # styled images needs the same setting: stages.camstyle.include_test=True stages.source.include_test=True
        include_test=False,
        model=dict(
            type="visionkit.CycleGAN",
            generator=dict(ngf=64, num_blocks=9, dropout=0.5),
            discriminator=dict(ndf=64, num_layers=3),  # a score sees 70x70 pixels
            cycle_weight=10.0,
            identity_weight=0.5,
            pool_size=50,
        ),
        image_size=(256, 256),
        load_size=(286, 286),
        epochs=30,
        decay_epochs=20,
        batch_size=1,
        optimizer=dict(type="Adam", lr=2e-4, betas=(0.5, 0.999)),
    ),
)
