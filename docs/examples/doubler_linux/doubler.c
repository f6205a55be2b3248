// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* A Linux driver of doubler.py: echo 21 >/dev/doubler; cat /dev/doubler. A write waits for the device's interrupt, a second at
   the most. Build it: make -C /lib/modules/$(uname -r)/build M=$PWD modules */
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>

enum { NUMBER = 0x4, DONE = 0x8, ENABLE = 0xC }; /* registers in BAR 0 */

struct doubler {
	void __iomem *registers;
	struct completion done;
	struct mutex one; /* write at a time */
	struct miscdevice misc;
};

static irqreturn_t doubler_interrupt(int irq, void *data)
{
	struct doubler *doubler = data;

	if (!ioread32(doubler->registers + DONE))
		return IRQ_NONE; /* another device's: the line is shared */
	iowrite32(0, doubler->registers + DONE);
	complete(&doubler->done);
	return IRQ_HANDLED;
}

/* misc_register() has put the miscdevice there */
static struct doubler *of(struct file *file)
{
	return container_of(file->private_data, struct doubler, misc);
}

static ssize_t doubler_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	struct doubler *doubler = of(file);
	long left;
	u32 number;
	int error = kstrtou32_from_user(text, size, 0, &number);

	if (error)
		return error;
	mutex_lock(&doubler->one);
	reinit_completion(&doubler->done);
	iowrite32(number, doubler->registers + NUMBER);
	left = wait_for_completion_timeout(&doubler->done, HZ);
	mutex_unlock(&doubler->one);
	return left ? size : -ETIMEDOUT;
}

static ssize_t doubler_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	char text[16];
	int length = scnprintf(text, sizeof(text), "%u\n", ioread32(of(file)->registers + NUMBER));

	return simple_read_from_buffer(to, size, at, text, length);
}

static const struct file_operations doubler_file = {
	.owner = THIS_MODULE,
	.read = doubler_read,
	.write = doubler_write,
};

static int doubler_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct doubler *doubler = devm_kzalloc(&pdev->dev, sizeof(*doubler), GFP_KERNEL);
	int error;

	if (!doubler)
		return -ENOMEM;
	error = pcim_enable_device(pdev);
	if (!error)
		error = pcim_iomap_regions(pdev, BIT(0), KBUILD_MODNAME);
	if (error)
		return error;
	doubler->registers = pcim_iomap_table(pdev)[0];
	init_completion(&doubler->done);
	mutex_init(&doubler->one);
	error = devm_request_irq(&pdev->dev, pdev->irq, doubler_interrupt, IRQF_SHARED, KBUILD_MODNAME, doubler);
	if (error)
		return error;
	iowrite32(1, doubler->registers + ENABLE);
	doubler->misc = (struct miscdevice){ .minor = MISC_DYNAMIC_MINOR, .name = KBUILD_MODNAME, .fops = &doubler_file };
	pci_set_drvdata(pdev, doubler);
	return misc_register(&doubler->misc);
}

static void doubler_remove(struct pci_dev *pdev)
{
	struct doubler *doubler = pci_get_drvdata(pdev);

	misc_deregister(&doubler->misc);
	iowrite32(0, doubler->registers + ENABLE);
}

static const struct pci_device_id doubler_ids[] = { { PCI_DEVICE(0x1234, 0xD0B1) }, {} };
MODULE_DEVICE_TABLE(pci, doubler_ids);

static struct pci_driver doubler_driver = {
	.name = KBUILD_MODNAME,
	.id_table = doubler_ids,
	.probe = doubler_probe,
	.remove = doubler_remove,
};
module_pci_driver(doubler_driver);
MODULE_LICENSE("GPL");
