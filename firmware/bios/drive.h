/* A disk as INT 13h has it, whatever is behind it. */

#define SECTOR 512
#define DRIVES 4

struct drive {
    u8 number;     /* 00h, 80h ... */
    u8 kind;       /* of the enum */
    u8 readonly;
    u8 heads, sectors_a_track;
    u16 cylinders;
    u64 sectors;
    int (*transfer)(struct drive *d, int write, u64 lba, u32 address, u16 count);
    union {
        struct { /* virtio-blk: its function, and its ring */
            u16 bdf;
            u8 access;  /* offset of the capability by which configuration space reaches the BAR */
            struct ring *ring;
        };
        struct { /* ATA: where its channel is, and which of two drives it is */
            u16 io;
            u8 select;
        };
    };
};

enum { VIRTIO_BLK, ATA };

/* Make *d* the disk of the PCI function *bdf*, if it is one. */
int virtio_blk_find(struct drive *d, u16 bdf);

/* The disks of the IDE controller *bdf*, at most *room*; how many there are. */
int ata_find(struct drive *drives, int room, u16 bdf);
